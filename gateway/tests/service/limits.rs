//! Limits follow what an engine and the daemon under it say.

use super::*;

/// An engine, or a daemon, that shows `page` at `path`; what else is asked of it goes to `requests`.
fn showing(path: &'static str, page: impl Fn() -> String + Send + Sync + 'static) -> (Http, Receiver<Exchange>) {
    let (sender, requests) = channel();
    let sender = Mutex::new(sender);
    let http = scripted::plain_upstream(move |mut e| {
        while e.head.starts_with("GET ") {
            if e.head.starts_with(&format!("GET {path} ")) {
                e.answer("200 OK", &page());
            } else {
                e.answer("404 Not Found", "{}");
            }
            let Some(next) = Exchange::read(e.stream) else { return };
            e = next;
        }
        sender.lock().unwrap().send(e).unwrap();
    });
    (http, requests)
}

fn engine_of(gateway: &stack::Gateway) -> Value {
    gateway.admin().unwrap().get_json("/v1/status").unwrap()["engines"][0].clone()
}

#[test]
fn what_others_have_on_an_engine_leaves_less_room_for_us() {
    let running = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(3));
    let shown = std::sync::Arc::clone(&running);
    let (engine, requests) = showing("/metrics", move || {
        let running = shown.load(std::sync::atomic::Ordering::Relaxed);
        format!(
            "vllm:num_requests_running{{m=\"x\"}} {running}\nvllm:num_requests_waiting{{m=\"x\"}} 0\n\
             vllm:kv_cache_usage_perc{{m=\"x\"}} 0.5\n\
             vllm:cache_config_info{{block_size=\"16\",num_gpu_blocks=\"100\"}} 1\n"
        )
    });
    let gateway = configured(&[&engine], "kind = \"vllm\"\nsequences = 4", "[timeouts]\nhealth_ms = 50");
    wait_for("its state is known", || engine_of(&gateway)["others_sequences"] == 3);
    let status = engine_of(&gateway);
    assert_eq!((&status["kv_tokens_max"], &status["others_kv_tokens"]), (&json!(1600), &json!(800)));
    let first = Raw::send(&gateway.http, "/v1/completions", &[], &completion(3, 5, false));
    let mut one = next(&requests);
    // One of the five is ours.
    running.store(5, std::sync::atomic::Ordering::Relaxed);
    wait_for("the others are counted", || engine_of(&gateway)["others_sequences"] == 4);
    let second = Raw::send(&gateway.http, "/v1/completions", &[], &completion(3, 5, false));
    wait_for("it waits", || metric(&gateway, "gateway_queue_requests") == 1.0);
    none_comes(&requests);
    running.store(1, std::sync::atomic::Ordering::Relaxed);
    finish(&mut next(&requests));
    finish(&mut one);
    assert_eq!((Raw::head(first).status, Raw::head(second).status), (200, 200));
}

#[test]
fn daemon_that_holds_prefill_back_means_fewer_prompts_and_a_predicted_ttft() {
    let (engine, requests) = held();
    let time = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let (daemon, _) = showing("/v1/status", move || {
        let at = time.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        json!({ "uptime_ns": at * 1_000_000, "held_now": [],
                "phases": [{ "phase": "prefill", "predicted_ns": at * 500_000, "held_ns": at * 750_000 }] })
        .to_string()
    });
    let fields = format!("prefill_tokens = 1000\ndaemon = \"{}\"", daemon.authority());
    let gateway = configured(&[&engine], &fields, "[timeouts]\nhealth_ms = 20");
    wait_for("a quarter is left", || {
        (240..=260).contains(&engine_of(&gateway)["prefill_tokens_max"].as_u64().unwrap())
    });
    assert_eq!(engine_of(&gateway)["prefill_us_per_token"], Value::Null, "no prompt has been prefilled");
    wait_for("prompts are timed", || {
        let client = Raw::send(&gateway.http, "/v1/completions", &[], &completion(500, 5, false));
        finish(&mut next(&requests));
        drop(Raw::head(client));
        engine_of(&gateway)["prefill_us_per_token"].is_number()
    });
    let told = Raw::post(&gateway.http, "/v1/explain", &[], &completion(500, 5, false)).json();
    let per_token = told["engines"][0]["prefill_us_per_token"].as_f64().unwrap();
    let ttft_ms = told["ttft_ms"].as_f64().unwrap();
    assert!(per_token > 0.0 && (ttft_ms - 500.0 * per_token / 1e3).abs() <= 0.2 * ttft_ms + 1.0, "{told}");
}
