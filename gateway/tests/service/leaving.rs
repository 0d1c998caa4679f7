//! Clients that leave, in whatever state: everything they held returns.

use super::*;

#[test]
fn client_that_leaves_the_queue_or_an_unanswered_connection_frees_its_place() {
    let (engine, requests) = held();
    let gateway = configured(&[&engine], "sequences = 1", "");
    let mut first = Raw::send(&gateway.http, "/v1/completions", &[], &completion(3, 5, false));
    let mut one = next(&requests);
    for stream in [false, true] {
        let queued = Raw::send(&gateway.http, "/v1/completions", &[], &completion(4, 5, stream));
        wait_for("it waits", || metric(&gateway, "gateway_queue_requests") == 1.0);
        drop(queued);
        wait_for("its place is free", || metric(&gateway, "gateway_queue_requests") == 0.0);
    }
    finish(&mut one);
    first = {
        drop(Raw::head(first));
        Raw::send(&gateway.http, "/v1/completions", &[], &completion(3, 5, false))
    };
    // None of those that left reached the engine.
    let mut last = next(&requests);
    assert_eq!(last.json()["prompt"].as_array().map(Vec::len), Some(3));
    finish(&mut last);
    drop(Raw::head(first));
    wait_for("both are counted", || metric(&gateway, "gateway_requests_ended_total{end=\"client_left\"}") == 2.0);
}

#[test]
fn client_that_leaves_while_the_engine_takes_no_connection_frees_its_place() {
    let deaf = Deaf::new();
    let _queue = deaf.stall();
    let gateway = configured(&[&deaf.http()], "sequences = 1", "[timeouts]\nconnect_ms = 600000");
    for stream in [false, true] {
        let connecting = Raw::send(&gateway.http, "/v1/completions", &[], &completion(4, 5, stream));
        wait_for("it connects", || metric(&gateway, "gateway_engine_sequences") == 1.0);
        drop(connecting);
        wait_for("its place is free", || metric(&gateway, "gateway_engine_sequences") == 0.0);
    }
    wait_for("both are counted", || metric(&gateway, "gateway_requests_ended_total{end=\"client_left\"}") == 2.0);
}

/// Clients that leave at any time, engines that stall and die: whatever happens, everything returns.
#[test]
fn nothing_is_held_after_thousands_of_requests_with_random_ends() {
    // One step of a linear congruential generator: the same ends in the same order in every run.
    let draw = |seed: &mut u64| {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *seed >> 33
    };
    let seed = Mutex::new(7);
    let engine = upstream(move |mut e| {
        let what = draw(&mut seed.lock().unwrap()) % 8;
        match what {
            0 => drop(e.closed()),
            1 => {}
            2 => {
                e.start_stream();
                e.token("a");
            }
            // The client may be gone: writing may fail, and that is one of the ends.
            _ => drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| finish(&mut e)))),
        }
    });
    let limits = "[timeouts]\nfirst_token_ms = 300\nkeep_alive_ms = 5\n[queue]\nrequests = 20\nwait_max_ms = 200";
    let gateway = configured(&[&engine, &engine.clone()], "prefill_tokens = 60\nsequences = 4", limits);
    std::thread::scope(|scope| {
        for client in 0..16u64 {
            let gateway = &gateway;
            scope.spawn(move || {
                let mut seed = client;
                for _ in 0..125 {
                    let (tokens, stream) = (1 + draw(&mut seed) as usize % 40, draw(&mut seed) % 2 == 0);
                    let answer = Raw::send(&gateway.http, "/v1/completions", &[], &completion(tokens, 9, stream));
                    match draw(&mut seed) % 3 {
                        0 => drop(answer),
                        1 => {
                            std::thread::sleep(Duration::from_millis(draw(&mut seed) % 20));
                            drop(answer);
                        }
                        _ => drop(Raw::head(answer)),
                    }
                }
            });
        }
    });
    let held = [
        "gateway_queue_requests",
        "gateway_queue_bytes",
        "gateway_admitted_requests",
        "gateway_engine_prefill_tokens",
        "gateway_engine_sequences",
        "gateway_engine_kv_tokens",
        "gateway_requests",
    ];
    wait_for("everything is back", || held.iter().all(|name| metric(&gateway, name) == 0.0));
    for end in ["finished", "client_left", "failed"] {
        let ended = metric(&gateway, &format!("gateway_requests_ended_total{{end=\"{end}\"}}"));
        assert!(ended > 20.0, "{ended} {end}: the test does not test what it says");
    }
}
