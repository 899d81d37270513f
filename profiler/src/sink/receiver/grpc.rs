//! Parca's and OpenTelemetry's push: a unary call of gRPC with a request that is
//! encoded already.

use anyhow::{Context, Result};
use prost::Message;
use reqwest::header::HeaderMap;
use tonic::metadata::MetadataMap;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

use super::{AGENT, Access, CONNECT_LIMIT, failure};
use crate::identity::grpc::{Encoded, call_with};
use crate::profile::push::Protocol;
use crate::sink::store::{Failure, PutError};

const PARCA: &str = "/parca.profilestore.v1alpha1.ProfileStoreService/WriteRaw";
const OTLP: &str = "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export";
/// Most bytes of an answer, which says next to nothing.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// A channel that connects when it is used, and again when the connection broke.
pub(super) fn channel(access: &Access) -> Result<Channel> {
    let url = access.url();
    let mut endpoint = Endpoint::from_shared(url.as_str().to_owned())
        .and_then(|endpoint| endpoint.user_agent(AGENT))
        .with_context(|| format!("{url} is no URL for gRPC"))?
        .connect_timeout(CONNECT_LIMIT);
    if url.scheme() == "https" {
        let mut tls = ClientTlsConfig::new();
        tls = match access.authorities()? {
            Some(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
            None => tls.with_native_roots(),
        };
        if let Some((certificate, key)) = access.own()? {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        endpoint = endpoint.tls_config(tls).context("prepare for TLS")?;
    }
    Ok(endpoint.connect_lazy())
}

/// Sends a request.
pub(super) async fn call(
    channel: &Channel,
    protocol: Protocol,
    headers: HeaderMap,
    body: Vec<u8>,
) -> Result<(), PutError> {
    let method = match protocol {
        Protocol::Otlp => OTLP,
        Protocol::Parca | Protocol::Pyroscope => PARCA,
    };
    let mut request = Request::new(Encoded(body));
    *request.metadata_mut() = MetadataMap::from_headers(headers);
    let answer = call_with::<_, Answer>(channel, method, request, MAX_ANSWER_BYTES).await;
    let partial = answer.map_err(|status| refusal(&status))?.partial_success;
    match partial {
        Some(partial) if partial.rejected_profiles > 0 => {
            Err(failure(Failure::Rejected, &partial.error_message))
        }
        _ => Ok(()),
    }
}

fn refusal(status: &Status) -> PutError {
    let code = status.code();
    let mut message = format!("{}: {}", code.description(), status.message());
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let text = error.to_string();
        // Each says again what is below it.
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        cause = error.source();
    }
    failure(kind(code), &message)
}

/// What a code means for the profile. Some say nothing of it: the access or the
/// server's address is wrong, which can be mended while profiles wait.
fn kind(code: Code) -> Failure {
    match code {
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::AlreadyExists
        | Code::DataLoss => Failure::Rejected,
        Code::Unauthenticated | Code::PermissionDenied => Failure::Denied,
        Code::NotFound | Code::Unimplemented => Failure::NotFound,
        Code::ResourceExhausted => Failure::Overloaded,
        Code::DeadlineExceeded => Failure::Timeout,
        Code::Unavailable => Failure::Unreachable,
        _ => Failure::Refused,
    }
}

/// `ExportProfilesServiceResponse`; Parca's answer has no field.
#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<Partial>,
}

#[derive(Clone, PartialEq, Message)]
struct Partial {
    #[prost(int64, tag = "1")]
    rejected_profiles: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_of_the_profile_is_final() {
        for (code, expected) in [
            (Code::InvalidArgument, Failure::Rejected),
            (Code::OutOfRange, Failure::Rejected),
            (Code::Unauthenticated, Failure::Denied),
            (Code::Unimplemented, Failure::NotFound),
            (Code::ResourceExhausted, Failure::Overloaded),
            (Code::Unavailable, Failure::Unreachable),
            (Code::Internal, Failure::Refused),
            (Code::Unknown, Failure::Refused),
        ] {
            assert_eq!(kind(code), expected, "{code:?}");
        }
    }
}
