//! Requests to servers on this machine, as far as the tests need them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// Gets `url` (`http://HOST:PORT/PATH`) and returns the body of the answer.
#[track_caller]
pub fn get(url: &str) -> Vec<u8> {
    request("GET", url, b"", Duration::from_secs(60)).unwrap_or_else(|e| panic!("GET {url}: {e}"))
}

/// Gets `url` as one that accepts this kind of answer, and returns the whole
/// answer, its status and headers first.
#[track_caller]
pub fn get_as(url: &str, accept: &str) -> String {
    let rest = url.strip_prefix("http://").expect("an http:// URL");
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let headers = format!("Accept: {accept}\r\n");
    let answer = exchange("GET", host, path, &headers, b"", Duration::from_secs(60));
    let answer = answer.unwrap_or_else(|e| panic!("GET {url}: {e}"));
    String::from_utf8(answer).expect("an answer in UTF-8")
}

/// Sends a request and returns the body of the answer.
///
/// # Errors
/// Says what went wrong: no connection, no answer in `limit`, or a status that
/// is not 200.
pub fn request(method: &str, url: &str, body: &[u8], limit: Duration) -> Result<Vec<u8>, String> {
    let rest = url.strip_prefix("http://").ok_or("not an http:// URL")?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let answer = exchange(method, host, path, "", body, limit).map_err(|e| e.to_string())?;
    let end = answer
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .ok_or("an answer without a header")?;
    let header = String::from_utf8_lossy(&answer[..end]);
    let status = header.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(status.to_owned());
    }
    Ok(answer[end + 4..].to_vec())
}

/// HTTP/1.0, so that the answer ends with the connection and is not chunked.
fn exchange(
    method: &str,
    host: &str,
    path: &str,
    headers: &str,
    body: &[u8],
    limit: Duration,
) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let length = body.len();
    let header = format!(
        "{method} /{path} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(header.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}
