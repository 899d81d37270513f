//! Pyroscope's push: a unary call of the Connect protocol, which is a POST whose
//! body is the message (connectrpc.com/docs/protocol).

use anyhow::{Context, Result};
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Certificate, Client, Identity, Response, StatusCode, Url, redirect};

use super::{AGENT, Access, CONNECT_LIMIT, PUT_LIMIT, failure};
use crate::sink::store::{Failure, PutError};

const METHOD: &str = "/push.v1.PusherService/Push";
/// Most that is read of an answer: only errors say anything.
const MAX_ANSWER_BYTES: usize = 4096;

pub(super) fn client(access: &Access) -> Result<Client> {
    let mut builder = Client::builder()
        .user_agent(AGENT)
        .connect_timeout(CONNECT_LIMIT)
        .timeout(PUT_LIMIT)
        // Credentials are for this server.
        .redirect(redirect::Policy::none());
    if let Some(pem) = access.authorities()? {
        let certificates = Certificate::from_pem_bundle(pem.as_bytes());
        builder = builder.tls_certs_only(certificates.context("read the CA's certificates")?);
    }
    if let Some((certificate, key)) = access.own()? {
        let both = format!("{certificate}\n{key}");
        let identity = Identity::from_pem(both.as_bytes());
        builder = builder.identity(identity.context("read the certificate and its key")?);
    }
    builder.build().context("prepare for HTTP")
}

/// Sends a request.
pub(super) async fn push(
    client: &Client,
    base: &Url,
    headers: HeaderMap,
    body: Vec<u8>,
) -> Result<(), PutError> {
    let url = format!("{}{METHOD}", base.as_str().trim_end_matches('/'));
    let request = client
        .post(url)
        .headers(headers)
        .header(CONTENT_TYPE, "application/proto")
        .header("connect-protocol-version", "1")
        .body(body);
    let response = request.send().await.map_err(|error| {
        let kind = match error.is_timeout() {
            true => Failure::Timeout,
            false => Failure::Unreachable,
        };
        failure(kind, &format!("{:#}", anyhow::Error::from(error)))
    })?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let said = said(response).await;
    Err(failure(kind(status), &format!("{status}: {said}")))
}

/// What a status means for the profile. Some say nothing of it: the access or the
/// server's address is wrong, which can be mended while profiles wait.
fn kind(status: StatusCode) -> Failure {
    match status.as_u16() {
        401 | 403 | 407 => Failure::Denied,
        404 => Failure::NotFound,
        408 => Failure::Timeout,
        425 | 429 => Failure::Overloaded,
        400..=499 => Failure::Rejected,
        _ => Failure::Refused,
    }
}

/// What an error's answer says, as text.
async fn said(mut response: Response) -> String {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        let room = MAX_ANSWER_BYTES - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() == MAX_ANSWER_BYTES {
            break;
        }
    }
    #[derive(serde::Deserialize)]
    struct Error {
        message: String,
    }
    match serde_json::from_slice::<Error>(&body) {
        Ok(error) => error.message,
        Err(_) => String::from_utf8_lossy(&body).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_of_the_profile_is_final() {
        for (status, expected) in [
            (400, Failure::Rejected),
            (413, Failure::Rejected),
            (422, Failure::Rejected),
            (401, Failure::Denied),
            (403, Failure::Denied),
            (404, Failure::NotFound),
            (408, Failure::Timeout),
            (429, Failure::Overloaded),
            (500, Failure::Refused),
            (503, Failure::Refused),
            (307, Failure::Refused),
        ] {
            assert_eq!(kind(StatusCode::from_u16(status).unwrap()), expected);
        }
    }
}
