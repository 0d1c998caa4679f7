//! Traces and metrics over OTLP, as a collector receives them.

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

use super::*;
use scripted::{Filed, file_text};

/// A collector: the paths and bodies of what it gets.
fn collector() -> (Http, Receiver<(String, Vec<u8>)>) {
    let (sender, exports) = channel();
    let sender = Mutex::new(sender);
    let http = scripted::plain_upstream(move |mut e| {
        loop {
            let path = e.head.split(' ').nth(1).unwrap().to_owned();
            sender.lock().unwrap().send((path, e.body.clone())).unwrap();
            e.say("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
            let Some(next) = Exchange::read(e.stream) else { return };
            e = next;
        }
    });
    (http, exports)
}

fn text(attributes: &[KeyValue], name: &str) -> String {
    let found = attributes.iter().find(|a| a.key == name).and_then(|a| a.value.clone());
    match found.and_then(|v: AnyValue| v.value) {
        Some(Any::StringValue(text)) => text,
        Some(Any::IntValue(number)) => number.to_string(),
        Some(Any::BoolValue(yes)) => yes.to_string(),
        other => panic!("{name}: {other:?} in {attributes:?}"),
    }
}

#[test]
fn collector_gets_a_span_for_the_request_and_for_each_phase_and_the_figures() {
    let (collector, exports) = collector();
    let engine = upstream(|mut e| {
        let parent = e.header("traceparent").expect("passed on").to_owned();
        e.start_stream();
        e.event(&json!({ "choices": [{ "text": "a" }], "parent": parent }).to_string());
        e.token("b");
        e.event(USAGE);
        e.end_stream();
    });
    let telemetry = format!("[telemetry]\nendpoint = \"http://{}\"\nservice_name = \"edge\"", collector.authority());
    let mut filed = Filed::start(&file_text(&[&engine], "kind = \"vllm\"", &telemetry));
    let parent = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [parent, "x-request-id: mine"];
    let seen = Raw::post(&filed.gateway.http, "/v1/chat/completions", &headers, &completion(40, 9, true)).rest();
    wait_for("it is over", || metric(&filed.gateway, "gateway_requests_ended_total{end=\"finished\"}") == 1.0);
    // Ending the gateway exports what is left.
    assert!(filed.gateway.program.stop().success());
    let (mut spans, mut figures): (Vec<Span>, Vec<_>) = (Vec::new(), Vec::new());
    for (path, body) in exports.try_iter() {
        if path == "/v1/traces" {
            for group in ExportTraceServiceRequest::decode(&body[..]).unwrap().resource_spans {
                assert_eq!(text(&group.resource.unwrap().attributes, "service.name"), "edge");
                spans.extend(group.scope_spans.into_iter().flat_map(|s| s.spans));
            }
        } else {
            assert_eq!(path, "/v1/metrics");
            let groups = ExportMetricsServiceRequest::decode(&body[..]).unwrap().resource_metrics;
            let metrics = groups.into_iter().flat_map(|g| g.scope_metrics).flat_map(|s| s.metrics);
            figures.extend(metrics.map(|m| m.name));
        }
    }
    let named = |name: &str| spans.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("no {name}: {spans:?}"));
    let whole = named("chat m");
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(hex(&whole.trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(hex(&whole.parent_span_id), "b7ad6b7169203331");
    // The engine's work is below ours.
    let passed = format!("00-{}-{}-01", hex(&whole.trace_id), hex(&whole.span_id));
    assert!(seen.contains(&passed), "{passed} in {seen}");
    for (name, value) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", "m"),
        ("gen_ai.provider.name", "vllm"),
        ("gen_ai.request.max_tokens", "9"),
        ("gen_ai.usage.input_tokens", "40"),
        ("gen_ai.usage.output_tokens", "2"),
        ("gateway.usage.cached_tokens", "30"),
        ("gateway.request.id", "mine"),
        ("gateway.engine", "e0"),
        ("gateway.stream", "true"),
        ("http.response.status_code", "200"),
    ] {
        assert_eq!(text(&whole.attributes, name), value, "{name}");
    }
    let phases = ["queued", "prefill", "decode"].map(named);
    for (phase, next) in phases.iter().zip(&phases[1..]) {
        assert_eq!(phase.end_time_unix_nano, next.start_time_unix_nano, "{} to {}", phase.name, next.name);
    }
    for phase in phases {
        assert_eq!(phase.parent_span_id, whole.span_id);
        assert!(phase.start_time_unix_nano <= phase.end_time_unix_nano);
        assert_eq!(text(&phase.attributes, "gateway.request.id"), "mine");
    }
    for name in [
        "gen_ai.server.request.duration",
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
        "gen_ai.client.token.usage",
    ] {
        assert!(figures.iter().any(|f| f == name), "{name} in {figures:?}");
    }
}

#[test]
fn what_nobody_samples_is_not_exported_and_telemetry_does_not_change_while_it_runs() {
    let (collector, exports) = collector();
    let engine = upstream(|mut e| finish(&mut e));
    let telemetry = |part: &str| {
        let rest = format!("[telemetry]\nendpoint = \"http://{}\"\nsampled_part = {part}", collector.authority());
        file_text(&[&engine], "", &rest)
    };
    let mut filed = Filed::start(&telemetry("0.0"));
    let (status, answer) = filed.reload(&telemetry("1.0"));
    assert!(status == 409 && answer["error"].as_str().unwrap().contains("line 1"), "{answer}");
    assert_eq!(Raw::post(&filed.gateway.http, "/v1/completions", &[], &completion(3, 5, false)).status, 200);
    assert!(filed.gateway.program.stop().success());
    assert!(exports.try_iter().all(|(path, _)| path == "/v1/metrics"), "a span was exported");
}
