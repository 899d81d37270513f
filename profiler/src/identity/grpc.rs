//! One gRPC call with messages written by hand: tonic's side of prost, without
//! code generated from `.proto` files. Knows no service.

use std::marker::PhantomData;

use prost::bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType, skip_field};
use prost::{DecodeError, Message};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};

/// Calls `method` (`/package.Service/Method`) and takes an answer of at most
/// `max_bytes`.
///
/// # Errors
/// The server is away or says no, or its answer is too large or none of `A`.
pub async fn call<Q, A>(
    channel: &Channel,
    method: &'static str,
    question: Q,
    max_bytes: usize,
) -> Result<A, Status>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    call_with(channel, method, Request::new(question), max_bytes).await
}

/// The same with a question that has metadata.
///
/// # Errors
/// As [`call`].
pub async fn call_with<Q, A>(
    channel: &Channel,
    method: &'static str,
    question: Request<Q>,
    max_bytes: usize,
) -> Result<A, Status>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(max_bytes);
    grpc.ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let method = PathAndQuery::from_static(method);
    let codec = Prost(PhantomData::<fn(Q) -> A>);
    let answer = grpc.unary(question, method, codec).await?;
    Ok(answer.into_inner())
}

/// A question that is encoded already.
#[derive(Debug)]
pub struct Encoded(pub Vec<u8>);

impl Message for Encoded {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        buffer.put_slice(&self.0);
    }

    /// Nobody answers with one.
    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        skip_field(wire_type, tag, buffer, context)
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

struct Prost<Q, A>(PhantomData<fn(Q) -> A>);
struct ProstEncoder<Q>(PhantomData<fn(Q)>);
struct ProstDecoder<A>(PhantomData<fn() -> A>);

impl<Q, A> Codec for Prost<Q, A>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    type Encode = Q;
    type Decode = A;
    type Encoder = ProstEncoder<Q>;
    type Decoder = ProstDecoder<A>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder(PhantomData)
    }
}

impl<Q: Message> Encoder for ProstEncoder<Q> {
    type Item = Q;
    type Error = Status;

    fn encode(&mut self, item: Q, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

impl<A: Message + Default> Decoder for ProstDecoder<A> {
    type Item = A;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<A>, Status> {
        A::decode(buffer)
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}
