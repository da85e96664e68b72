//! A URL into a file: bundles come from web servers.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use tokio::io::AsyncWriteExt;

use super::endpoint::authority;
use super::transport::{Body, is_loopback};
use super::*;
use crate::image::local::Job;
use crate::image::pull::blocking;

/// Why a URL cannot be used, if it cannot.
pub(crate) fn check_url(text: &str) -> Result<(), String> {
    let url: Url = match text.parse() {
        Ok(url) if text.len() <= 2048 => url,
        Ok(_) => return Err("a URL has at most 2048 characters".to_owned()),
        Err(error) => return Err(format!("{text:?} is no URL: {error}")),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL cannot hold a user or a password: manifests are no place for them".to_owned());
    }
    match url.scheme() {
        "https" => Ok(()),
        "http" if is_loopback(&url) => Ok(()),
        _ => Err("use an https URL; http is for loopback addresses only".to_owned()),
    }
}

impl Registry {
    /// Downloads a URL, anew after each broken connection, into an empty file that has no other user.
    /// Returns the digest. `begin` is told the length, if the server says one, of each attempt, and there must be
    /// room for that.
    pub(crate) async fn fetch(
        &self,
        url: &str,
        file: &File,
        job: &Job,
        begin: impl Fn(u64) + Send,
        arrived: impl Fn(u64) + Send,
    ) -> Result<Digest, ImageError> {
        check_url(url).map_err(ImageError::invalid)?;
        let url: Url = url.parse().map_err(|error| ImageError::invalid(format!("{url}: {error}")))?;
        let mut backoff = Backoff::new(&self.settings, self.settings.attempts);
        loop {
            match self.fetch_once(&url, file, job, &begin, &arrived).await {
                Ok(digest) => return Ok(digest),
                Err(failure) => backoff.after(failure, false).await?,
            }
        }
    }

    async fn fetch_once(
        &self,
        url: &Url,
        file: &File,
        job: &Job,
        begin: &(impl Fn(u64) + Send),
        arrived: &(impl Fn(u64) + Send),
    ) -> Result<Digest, Failure> {
        let local = |error| ImageError::host("writing a download", &error);
        let mut file = file.try_clone().map_err(local)?;
        file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).map_err(local)?;
        let mut file = tokio::fs::File::from_std(file);
        let response = self.transport.get(&authority(url), url, &HeaderMap::new(), None).await?;
        let response = served(response, url)?;
        let (length, bound) = (response.content_length().unwrap_or(0), job.limits().compressed_bytes);
        check("the bundle", "compressed_bytes", length, bound)?;
        begin(length);
        let room = job.clone();
        let promise = blocking("looking for room", move || room.promise(length)).await?;
        let (mut body, mut hash, mut received) = (Body::new(response, &self.settings), Sha256::new(), 0u64);
        while let Some(chunk) = body.next().await? {
            received += chunk.len() as u64;
            check("the bundle", "compressed_bytes", received, bound)?;
            hash.update(&chunk);
            file.write_all(&chunk).await.map_err(local)?;
            promise.used(chunk.len() as u64);
            arrived(chunk.len() as u64);
        }
        file.flush().await.map_err(local)?;
        Ok(Digest::sha256(hash.finalize().into()))
    }
}

/// Turns everything but success into an error.
fn served(response: Response, url: &Url) -> Result<Response, Failure> {
    let status = response.status();
    let message = format!("{}: {status}", place(url));
    match status {
        _ if status.is_success() => Ok(response),
        StatusCode::NOT_FOUND | StatusCode::GONE => Err(ImageError::not_found(message).into()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(ImageError::unauthorized(message).into()),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Err(Failure::broken(message)),
        _ if status.is_server_error() => Err(Failure::broken(message)),
        _ => Err(ImageError::unavailable(message).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::check_url;

    #[test]
    fn urls_are_https_or_loopback_without_secrets() {
        for good in ["https://images.example/a.tar.zst", "http://127.0.0.1:8000/a", "http://localhost/a"] {
            assert_eq!(check_url(good), Ok(()), "{good}");
        }
        for bad in [
            "http://images.example/a",
            "http://127.0.0.1.evil.example/a",
            "https://user:secret@images.example/a",
            "https://user@images.example/a",
            "https://:secret@images.example/a",
            "ftp://images.example/a",
            "file:///etc/passwd",
            "https://",
            "a.tar",
        ] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
        let long = |length: usize| format!("https://images.example/{}", "a".repeat(length - 23));
        assert_eq!(check_url(&long(2048)), Ok(()));
        assert!(check_url(&long(2049)).is_err());
    }
}
