//! Reading from a link without a buffer to wait with: most links are silent most of the time.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use vmlet_wire::Decoder;

/// The most that is taken at a time, in bytes.
const PIECE: usize = 32 << 10;

/// Hands what has come to the decoder. Returns how much it was, in bytes: 0 at the end. Cancel-safe.
pub(super) async fn receive(
    reader: &mut (impl AsyncRead + Unpin),
    decoder: &mut Decoder,
) -> io::Result<usize> {
    poll_fn(|context| {
        let mut space = [MaybeUninit::uninit(); PIECE];
        let mut piece = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut *reader).poll_read(context, &mut piece))?;
        decoder.push(piece.filled());
        Poll::Ready(Ok(piece.filled().len()))
    })
    .await
}
