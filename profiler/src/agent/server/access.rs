//! Who may have which answer: judges a request by what its client shows and by
//! whom the server can be reached. Answers nothing itself but refusals.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header, uri::Authority},
    middleware::Next,
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{credentials::Credentials, plain};
use crate::agent::state::State as Agent;
use crate::metrics::Metrics;

/// What a probe of health learns is nothing that others may not know.
const FOR_ALL: [&str; 2] = ["/healthz", "/readyz"];
/// What other machines get of a server that asks for nothing, as exporters of
/// metrics are used to: neither profiles nor who runs.
const FOR_NETWORK: [&str; 2] = ["/", "/metrics"];

/// How the server is guarded, as seen from a connection.
#[derive(Clone)]
pub(super) struct Access {
    pub credentials: Arc<Credentials>,
    pub agent: Arc<Agent>,
    /// Whether only this machine's own programs reach it.
    pub is_local: bool,
    /// Whether anybody gets everything.
    pub is_open: bool,
    /// Whether clients must show a certificate.
    pub wants_certificate: bool,
    /// Whether this connection's client has shown one that holds.
    pub has_certificate: bool,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Certificate,
    Token,
    Network,
    Host,
}

/// Lets a request through, or refuses it.
pub(super) async fn check(State(access): State<Access>, request: Request, next: Next) -> Response {
    match access.judge(request.uri().path(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.answer(&access.agent.metrics),
    }
}

impl Access {
    fn judge(&self, path: &str, headers: &HeaderMap) -> Result<(), Refusal> {
        if FOR_ALL.contains(&path) {
            return Ok(());
        }
        if self.wants_certificate && !self.has_certificate {
            return Err(Refusal::Certificate);
        }
        match &self.credentials.current().token {
            Some(token) => match shown(headers).is_some_and(|shown| token.is(&shown)) {
                true => Ok(()),
                false => Err(Refusal::Token),
            },
            None if self.wants_certificate || self.is_open => Ok(()),
            None if FOR_NETWORK.contains(&path) => Ok(()),
            None if !self.is_local => Err(Refusal::Network),
            None if !is_own_name(headers) => Err(Refusal::Host),
            None => Ok(()),
        }
    }
}

/// Whether a client took the server for one of this machine: a web page that had
/// its own name lead here (DNS rebinding) did not.
fn is_own_name(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else {
        return true;
    };
    let authority = host.to_str().ok().and_then(|host| host.parse().ok());
    authority.is_some_and(|authority: Authority| {
        let host = authority.host().trim_matches(['[', ']']);
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok()
    })
}

/// The token that a client shows: as such, or as a password with any name, which
/// is what browsers and `go tool pprof` know of.
fn shown(headers: &HeaderMap) -> Option<Vec<u8>> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let space = value.iter().position(|byte| *byte == b' ')?;
    let (scheme, rest) = (&value[..space], value[space..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(rest.to_vec());
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let pair = STANDARD.decode(rest).ok()?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(pair[colon + 1..].to_vec())
}

impl Refusal {
    /// Its name in metrics.
    fn word(self) -> &'static str {
        match self {
            Refusal::Certificate => "certificate",
            Refusal::Token => "token",
            Refusal::Network => "network",
            Refusal::Host => "host",
        }
    }

    fn answer(self, metrics: &Metrics) -> Response {
        metrics.refused.with_label_values(&[self.word()]).inc();
        match self {
            Refusal::Certificate => plain(
                StatusCode::FORBIDDEN,
                "show a client certificate that http.tls.client_ca_file vouches for\n",
            ),
            Refusal::Token => {
                let why = "show the token: Authorization: Bearer TOKEN, or as a password\n";
                let mut response = plain(StatusCode::UNAUTHORIZED, why);
                for scheme in ["Bearer realm=\"goprof\"", "Basic realm=\"goprof\""] {
                    let scheme = HeaderValue::from_static(scheme);
                    response
                        .headers_mut()
                        .append(header::WWW_AUTHENTICATE, scheme);
                }
                response
            }
            Refusal::Host => plain(
                StatusCode::MISDIRECTED_REQUEST,
                "ask by localhost or an address, as other names may be a web page's: \
                 else set http.token_file or http.insecure = true\n",
            ),
            Refusal::Network => plain(
                StatusCode::FORBIDDEN,
                "closed, as other machines reach this and nobody shows who they are: \
                 set http.token_file or http.tls.client_ca_file, else http.insecure = true\n",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(authorization: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_bytes(authorization.as_bytes()).unwrap();
        headers.insert(header::AUTHORIZATION, value);
        headers
    }

    #[test]
    fn addresses_and_localhost_are_this_machine() {
        let is_own = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
            is_own_name(&headers)
        };
        for own in [
            "localhost:7071",
            "LOCALHOST",
            "127.0.0.1:7071",
            "[::1]:7071",
            "10.0.0.1",
        ] {
            assert!(is_own(own), "{own}");
        }
        for other in [
            "evil.example:7071",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
        ] {
            assert!(!is_own(other), "{other}");
        }
        assert!(is_own_name(&HeaderMap::new()));
    }

    #[test]
    fn tokens_come_in_two_ways() {
        let shown = |text: &str| shown(&headers(text)).map(|t| String::from_utf8(t).unwrap());
        assert_eq!(shown("Bearer abc"), Some("abc".into()));
        assert_eq!(shown("bearer  abc "), Some("abc".into()));
        // goprof:a:b
        assert_eq!(shown("Basic Z29wcm9mOmE6Yg=="), Some("a:b".into()));
        for wrong in ["", "abc", "Basic ?", "Basic Z29wcm9m", "Digest abc"] {
            assert_eq!(shown(wrong), None, "{wrong}");
        }
    }
}
