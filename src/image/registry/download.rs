//! A blob into a file, through broken connections.

use futures_util::StreamExt;

use super::*;
use crate::image::blob::{BlobSink, BlobWriter};

impl Registry {
    /// Downloads a blob, picking up where a broken connection left off; `arrived` is told the
    /// length of each new piece.
    pub(crate) async fn blob(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        writer: BlobWriter,
        arrived: impl Fn(u64) + Send,
    ) -> Result<(), ImageError> {
        let mut backoff = Backoff::new(&self.settings);
        let mut download = Download { blob, sink: writer.start(), received: 0 };
        while download.received < blob.size {
            let before = download.received;
            if let Err(failure) = self.attempt(reference, &mut download, &arrived).await {
                if download.received - before >= Settings::PROGRESS_BYTES {
                    backoff.reset();
                }
                backoff.after(failure).await?;
            }
        }
        download.sink.finish(&blob.digest).await
    }

    /// One request, until the blob is complete or the connection breaks.
    async fn attempt(
        &self,
        reference: &Reference,
        download: &mut Download<'_>,
        arrived: &(impl Fn(u64) + Send),
    ) -> Result<(), Failure> {
        let from = (download.received > 0).then_some(download.received);
        let response = self.get(reference, &format!("blobs/{}", download.blob.digest), from).await?;
        let place = place(response.url());
        let mut skip = download.already_there(&response, &place)?;
        let mut stream = response.bytes_stream();
        while download.received < download.blob.size {
            let mut chunk = match tokio::time::timeout(self.settings.idle_timeout, stream.next()).await {
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(error))) => return Err(Failure::broken(format!("{place}: {}", chain(&error)))),
                Ok(None) => {
                    return Err(Failure::broken(format!("{place}: ended after {} bytes", download.received)));
                }
                Err(_) => return Err(self.stalled(&place)),
            };
            let known = skip.min(chunk.len() as u64);
            // At most the chunk's length.
            let _ = chunk.split_to(known as usize);
            skip -= known;
            let length = chunk.len() as u64;
            if length > download.blob.size - download.received {
                return Err(download.wrong_size(&place).into());
            }
            if length > 0 && !download.sink.write(chunk).await {
                // The disk failed, and only the sink knows how; it never finishes well.
                download.received = download.blob.size;
                return Ok(());
            }
            download.received += length;
            arrived(length);
        }
        Ok(())
    }
}

struct Download<'a> {
    blob: &'a Descriptor,
    sink: BlobSink,
    received: u64,
}

impl Download<'_> {
    /// How many bytes of the answer are there already: a registry may ignore the range.
    fn already_there(&self, response: &Response, place: &str) -> Result<u64, Failure> {
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        if partial {
            let range = response
                .headers()
                .get(CONTENT_RANGE)
                .and_then(|range| range.to_str().ok())
                .unwrap_or_default();
            let start =
                range.strip_prefix("bytes ").and_then(|range| range.split_once('-')?.0.parse::<u64>().ok());
            if start != Some(self.received) {
                let message = format!(
                    "{place}: asked from byte {}, answered \"{}\"",
                    self.received,
                    printable(range.as_bytes())
                );
                return Err(Failure::broken(message));
            }
        }
        let skip = if partial { 0 } else { self.received };
        let expected = self.blob.size - self.received + skip;
        match response.content_length() {
            Some(length) if length != expected => Err(self.wrong_size(place).into()),
            _ => Ok(skip),
        }
    }

    fn wrong_size(&self, place: &str) -> ImageError {
        let size = self.blob.size;
        ImageError::invalid(format!("{place}: is not of the {size} bytes that the manifest promises"))
    }
}
