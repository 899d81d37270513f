//! What a receiver's answers come to, over real sockets. Receivers' own servers
//! answer in `tests/push.rs`.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use super::*;

/// A server that answers one request with these bytes, and says what it was asked.
fn answering(answer: &'static str) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut chunk = [0; 4096];
        while !request.ends_with(b"body") {
            match stream.read(&mut chunk).unwrap() {
                0 => break,
                read => request.extend_from_slice(&chunk[..read]),
            }
        }
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8_lossy(&request).to_lowercase()
    });
    (url, asked)
}

async fn push(answer: &'static str) -> (Result<(), PutError>, String) {
    let (url, asked) = answering(answer);
    let access = Access::new(&format!("{url}/base/")).unwrap();
    let access = access.tenant("team-a").unwrap();
    let receiver = Receiver::open("test", Protocol::Pyroscope, access).unwrap();
    let sent = receiver.put("key", b"body".to_vec()).await;
    (sent, asked.join().unwrap())
}

#[tokio::test]
async fn a_push_is_a_connect_call_with_the_tenant() {
    let (sent, asked) = push("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    sent.unwrap();
    for line in [
        "post /base/push.v1.pusherservice/push http/1.1",
        "content-type: application/proto",
        "connect-protocol-version: 1",
        "x-scope-orgid: team-a",
    ] {
        assert!(asked.contains(line), "{line}\n{asked}");
    }
}

#[tokio::test]
async fn what_the_server_says_is_told_in_one_line() {
    let body = "HTTP/1.1 400 Bad\r\nContent-Length: 51\r\n\r\n\
                {\"code\":\"invalid_argument\",\"message\":\"no\\nlabels!\"}";
    let (sent, _) = push(body).await;
    let error = sent.unwrap_err();
    assert_eq!(error.failure, Failure::Rejected);
    assert_eq!(error.to_string(), "400 Bad Request: no labels!");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let answer = "HTTP/1.1 307 No\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n";
    let (sent, _) = push(answer).await;
    assert_eq!(sent.unwrap_err().failure, Failure::Refused);
}

#[tokio::test]
async fn a_server_that_is_away_is_unreachable_by_every_protocol() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    for protocol in [Protocol::Pyroscope, Protocol::Parca, Protocol::Otlp] {
        let access = Access::new(&url).unwrap();
        let receiver = Receiver::open("test", protocol, access).unwrap();
        for _ in 0..2 {
            let error = receiver.put("key", b"body".to_vec()).await.unwrap_err();
            assert_eq!(error.failure, Failure::Unreachable, "{error}");
            assert!(error.to_string().contains("refused"), "{error}");
        }
    }
}

#[tokio::test]
async fn what_pyroscope_would_refuse_for_its_age_is_not_sent() {
    // Nobody listens there, which would be another failure.
    let access = Access::new("http://127.0.0.1:1").unwrap();
    let receiver = Receiver::open("test", Protocol::Pyroscope, access).unwrap();
    let old = SystemTime::now() - MAX_AGE - Duration::from_secs(1);
    let key = Ulid::from_datetime(old).to_string();
    let error = receiver.put(&key, Vec::new()).await.unwrap_err();
    assert_eq!(error.failure, Failure::TooOld);
    let young = Ulid::from_datetime(old + Duration::from_secs(30)).to_string();
    let error = receiver.put(&young, Vec::new()).await.unwrap_err();
    assert_eq!(error.failure, Failure::Unreachable);
}

#[tokio::test]
async fn files_that_are_missing_are_named_at_once() {
    let missing = std::path::Path::new("/no/such/file");
    let access = || Access::new("https://host/").unwrap();
    for access in [
        access().token(None, missing),
        access().ca_file(missing),
        access().certificate(missing, missing),
        access().header_file("x-key", missing).unwrap(),
    ] {
        for protocol in [Protocol::Pyroscope, Protocol::Parca] {
            let opened = Receiver::open("grafana", protocol, access.clone());
            let error = format!("{:#}", opened.err().unwrap());
            assert!(error.starts_with("push to grafana: "), "{error}");
            assert!(error.contains("/no/such/file"), "{error}");
        }
    }
}
