//! A changed configuration file: it takes effect without a request being dropped, or not at all.

use super::*;
use scripted::{Filed, file_text};

#[test]
fn new_engine_takes_over_from_a_removed_one_which_ends_what_it_has() {
    let (old, at_old) = held();
    let (new, at_new) = held();
    let filed = Filed::start(&file_text(&[&old], "sequences = 1", ""));
    let gateway = &filed.gateway;
    let running = Raw::send(&gateway.http, "/v1/completions", &[], &completion(3, 5, true));
    let mut one = next(&at_old);
    one.start_stream();
    one.token("one");
    let waiting = Raw::send(&gateway.http, "/v1/completions", &[], &completion(4, 5, false));
    wait_for("it waits", || metric(gateway, "gateway_queue_requests") == 1.0);
    let text = file_text(&[&new], "sequences = 1", "").replace("e0", "new");
    let (status, answer) = filed.reload(&text);
    assert_eq!((status, &answer["added"], &answer["removed"]), (200, &json!(["new"]), &json!(["e0"])), "{answer}");
    // Who waited for the old engine alone goes to the new one.
    let mut two = next(&at_new);
    assert_eq!(two.json()["prompt"].as_array().map(Vec::len), Some(4));
    finish(&mut two);
    assert_eq!(Raw::head(waiting).status, 200);
    one.token("two");
    one.end_stream();
    let seen = Raw::head(running).rest();
    assert!(seen.contains("\"one\"") && seen.contains("\"two\"") && seen.ends_with("[DONE]\n\n"), "{seen}");
    let status = gateway.admin().unwrap().get_json("/v1/status").unwrap();
    let engines: Vec<_> = status["engines"].as_array().unwrap().iter().map(|e| e["name"].clone()).collect();
    assert_eq!((engines, status["generation"].as_u64()), (vec![json!("new")], Some(2)));
    none_comes(&at_old);
}

#[test]
fn file_with_a_mistake_is_refused_with_its_line_and_the_old_one_stays() {
    let engine = upstream(|mut e| finish(&mut e));
    let text = file_text(&[&engine], "", "body_bytes_max = 1000");
    let filed = Filed::start(&text);
    for (wrong, line, words) in [
        (text.replace("body_bytes_max", "body_bites_max"), "line 1", "body_bites_max"),
        (text.replace("address = \"127.0.0.1:", "address = \""), "line 4", "host:port"),
        (format!("{text}[tiers.t]\nband = 7\n"), "line 7", "band 7"),
        (format!("{text}api_key_env = \"NO_SUCH_VARIABLE\"\n"), "line 6", "NO_SUCH_VARIABLE"),
        (String::new(), "", "[[engines]]"),
    ] {
        let (status, answer) = filed.reload(&wrong);
        let error = answer["error"].as_str().unwrap();
        assert_eq!(status, 409, "{answer}");
        assert!(error.contains(line) && error.contains(words), "{error}");
        assert_eq!(Raw::post(&filed.gateway.http, "/v1/completions", &[], &completion(3, 5, false)).status, 200);
        let large = Raw::post(&filed.gateway.http, "/v1/completions", &[], &completion(900, 5, false));
        assert_eq!(large.status, 413, "the old limit holds");
    }
    let (status, _) = filed.reload(&text.replace("1000", "100000"));
    assert_eq!(status, 200);
    assert_eq!(Raw::post(&filed.gateway.http, "/v1/completions", &[], &completion(900, 5, false)).status, 200);
}

#[test]
fn signal_changes_keys_and_limits_and_what_was_used_stays_used() {
    let engine = upstream(|mut e| finish(&mut e));
    let text = |tier: &str, names: &[&str]| file_text(&[&engine], "", &tenants(tier, names));
    let filed = Filed::start(&text("tokens_per_day = 20", &["blue", "red"]));
    let ask = |who: &str, tokens: usize| {
        let key = format!("authorization: Bearer key-of-{who}");
        let mut answer = Raw::post(&filed.gateway.http, "/v1/completions", &[&key], &completion(tokens, 5, false));
        // A client that left at the head would be charged the estimate.
        answer.rest();
        answer.status
    };
    assert_eq!((ask("blue", 10), ask("green", 10)), (200, 401));
    let used = "gateway_tenant_tokens_total{tenant=\"blue\",kind=\"input\"}";
    wait_for("what is not used is back", || scripted::try_metric(&filed.gateway, used) == Some(3.0));
    std::fs::write(&filed.path, text("tokens_per_day = 1000", &["blue", "green"])).unwrap();
    let gateway = rustix::process::Pid::from_raw(filed.gateway.program.pid() as i32).unwrap();
    rustix::process::kill_process(gateway, rustix::process::Signal::HUP).unwrap();
    wait_for("the new key is known", || ask("green", 10) == 200);
    // Four were used: 993 and 5 are too many, 980 and 5 are not.
    assert_eq!((ask("red", 10), ask("blue", 993), ask("blue", 980)), (401, 429, 200));
}

#[test]
fn no_request_is_dropped_while_engines_come_and_go() {
    let engines: Vec<Http> = (0..3).map(|_| upstream(|mut e| finish(&mut e))).collect();
    let text = |i: usize| file_text(&[&engines[i % 3], &engines[(i + 1) % 3]], "sequences = 2", "");
    // The same name at another address is another engine.
    let filed = Filed::start(&text(0));
    let done = std::sync::atomic::AtomicBool::new(false);
    let served: usize = std::thread::scope(|scope| {
        let ask = || {
            let mut served = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let mut answer =
                    Raw::post(&filed.gateway.http, "/v1/completions", &[], &completion(3, 5, served % 2 == 0));
                let (status, body) = (answer.status, answer.rest());
                assert!(status == 200 && !body.contains("error"), "{status} {body}");
                served += 1;
            }
            served
        };
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        for i in 1..=25 {
            let (status, answer) = filed.reload(&text(i));
            assert_eq!(status, 200, "{answer}");
            std::thread::sleep(Duration::from_millis(20));
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        clients.into_iter().map(|c| c.join().unwrap()).sum()
    });
    assert!(served > 25, "{served}: fewer requests than reloads test nothing");
    wait_for("everything is back", || metric(&filed.gateway, "gateway_admitted_requests") == 0.0);
}

#[test]
fn gateway_without_a_file_says_so() {
    let gateway = gateway(&upstream(|_| ()));
    let (status, body) = gateway.admin().unwrap().send("POST", "/v1/reload", "").unwrap();
    assert!(status == 409 && body.contains("--upstream"), "{status} {body}");
}
