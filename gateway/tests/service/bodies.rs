//! Request bodies: of any size and framing, up to the limit.

use super::*;

#[test]
fn bodies_of_any_size_and_framing_arrive_whole() {
    for size in [1usize, 100, 65_535, 65_536, 1 << 20, 40 << 20] {
        let engine = upstream(|mut e| {
            loop {
                let sum: u64 = e.body.iter().fold(0, |h, &b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
                let answer = format!("{{\"len\":{},\"sum\":{sum}}}", e.body.len());
                e.answer("200 OK", &answer);
                // What is not known to be safe is not sent twice: a connection that closes between two requests is an error.
                let Some(next) = Exchange::read(e.stream).and_then(Exchange::unlooked) else { return };
                e = next;
            }
        });
        let gateway = gateway(&engine);
        let body: Vec<u8> = (0..size).map(|i| (i * 7 % 251) as u8).collect();
        let want: u64 = body.iter().fold(0, |h, &b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
        for chunked in [false, true] {
            let mut stream = std::net::TcpStream::connect(gateway.http.authority()).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let framing =
                if chunked { "transfer-encoding: chunked".to_owned() } else { format!("content-length: {size}") };
            let mut request = format!("POST /any HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n").into_bytes();
            if chunked {
                for piece in body.chunks(60_000) {
                    request.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                    request.extend_from_slice(piece);
                    request.extend_from_slice(b"\r\n");
                }
                request.extend_from_slice(b"0\r\n\r\n");
            } else {
                request.extend_from_slice(&body);
            }
            std::io::Write::write_all(&mut stream, &request).unwrap();
            let answer = Raw::head(std::io::BufReader::new(stream)).json();
            assert_eq!(answer, json!({ "len": size, "sum": want }), "{size} bytes, chunked: {chunked}");
        }
    }
}

#[test]
fn body_above_the_limit_is_a_413_in_json() {
    let gateway = configured(&[&upstream(|_| ())], "", "body_bytes_max = 1000");
    let mut answer = Raw::post(&gateway.http, "/v1/completions", &[], &"x".repeat(3 << 20));
    assert_eq!((answer.status, answer.header("x-should-retry")), (413, Some("false")));
    assert_eq!(answer.json()["error"]["code"], "body_too_large");
}
