//! A blob into a file, through broken connections.

use super::transport::Body;
use super::*;
use crate::image::blob::BlobSink;

impl Registry {
    /// Downloads what a blob lacks, picking up where a broken connection left off, from one endpoint
    /// after the other; `arrived` is told how many bytes there are.
    pub(crate) async fn blob(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        sink: BlobSink,
        arrived: impl Fn(u64) + Send,
    ) -> Result<(), ImageError> {
        let received = sink.position();
        arrived(received);
        let mut download = Download { blob, sink, received, ranges: true };
        let endpoints = self.endpoints(reference)?;
        let mut senders = Vec::new();
        let mut outcome = Ok(());
        for endpoint in &endpoints {
            let before = download.received;
            outcome = self.attempts(endpoint, reference, &mut download, &arrived).await;
            if download.received > before {
                senders.push(endpoint);
            }
            match &outcome {
                Ok(()) => break,
                Err(error) => self.failed(endpoint, error),
            }
        }
        if let Err(error) = outcome {
            download.sink.give_up(&error);
            return Err(error);
        }
        let finished = download.sink.finish().await;
        if let Err(error) = &finished {
            // Which of them lied cannot be told: the next attempt asks the registry.
            senders.iter().for_each(|endpoint| self.failed(endpoint, error));
        }
        finished
    }

    /// Attempts, until the blob is complete or nothing comes from this endpoint any more.
    async fn attempts(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        download: &mut Download<'_>,
        arrived: &(impl Fn(u64) + Send),
    ) -> Result<(), ImageError> {
        let mut backoff = Backoff::new(&self.settings, endpoint.attempts(&self.settings));
        while download.received < download.blob.size {
            let before = download.received;
            if let Err(failure) = self.attempt(endpoint, reference, download, arrived).await {
                let progressed = download.received - before >= Settings::PROGRESS_BYTES;
                backoff.after(failure, progressed).await?;
            }
        }
        Ok(())
    }

    /// One request, until the blob is complete or the connection breaks.
    async fn attempt(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        download: &mut Download<'_>,
        arrived: &(impl Fn(u64) + Send),
    ) -> Result<(), Failure> {
        let from = (download.ranges && download.received > 0).then_some(download.received);
        let path = format!("blobs/{}", download.blob.digest);
        let response = match self.get(endpoint, reference, &path, from).await {
            Err(failure) => {
                download.ranges &= !failure.no_range;
                return Err(failure);
            }
            Ok(response) => response,
        };
        let place = place(response.url());
        let mut skip = download.already_there(&response, &place)?;
        let mut body = Body::new(response, &self.settings);
        while download.received < download.blob.size {
            let Some(mut chunk) = body.next().await? else {
                return Err(Failure::broken(format!("{place}: ended after {} bytes", download.received)));
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
            arrived(download.received);
        }
        Ok(())
    }
}

struct Download<'a> {
    blob: &'a Descriptor,
    sink: BlobSink,
    received: u64,
    /// Whether it is worth asking for the rest only.
    ranges: bool,
}

impl Download<'_> {
    /// How many bytes of the answer are there already: a registry may ignore the range.
    fn already_there(&self, response: &Response, place: &str) -> Result<u64, Failure> {
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        if partial {
            let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
            let range = range.unwrap_or_default();
            let (start, total) = content_range(range).unwrap_or((None, None));
            if start != Some(self.received) {
                let message = format!(
                    "{place}: asked from byte {}, answered \"{}\"",
                    self.received,
                    printable(range.as_bytes())
                );
                return Err(Failure::broken(message));
            }
            if total.is_some_and(|total| total != self.blob.size) {
                return Err(self.wrong_size(place).into());
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

/// Where a range starts, and how long the whole is (RFC 9110, section 14.4).
fn content_range(text: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok(), total.parse().ok()))
}
