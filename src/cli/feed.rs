//! A list that stays true: the list, then its changes, for as long as one likes.

use std::time::Duration;

use serde_json::Value;

use super::client::{Client, Stream};
use super::error::CliError;
use crate::api::types::{Status, WatchEvent, WatchKind};

/// How long to wait before a watch that ended is started again.
const PAUSE: Duration = Duration::from_millis(100);

/// What a [`Feed`] tells.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum News {
    /// The whole list, as it is now. Comes first, and again when changes were missed.
    Listed(Value),
    /// One change since.
    Changed(WatchKind, Value),
}

/// Lists, then watches.
pub(super) struct Feed {
    client: Client,
    path: String,
    accept: &'static str,
    /// The version that was told last; empty before the list.
    version: String,
    stream: Option<Stream>,
}

impl Feed {
    /// A feed of a list's path, which may have a query.
    pub(super) fn new(client: &Client, path: String, accept: &'static str) -> Self {
        Feed { client: client.clone(), path, accept, version: String::new(), stream: None }
    }

    /// What is new. Waits for it as long as it takes.
    ///
    /// # Errors
    /// When no daemon answers (any more), or it refuses.
    pub(super) async fn next(&mut self) -> Result<News, CliError> {
        loop {
            if self.version.is_empty() {
                let list: Value = self.client.get(&self.path, self.accept).await?;
                self.remember(&list);
                return Ok(News::Listed(list));
            }
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => {
                    let separator = if self.path.contains('?') { '&' } else { '?' };
                    let path = format!(
                        "{}{separator}watch=true&allowWatchBookmarks=true&resourceVersion={}",
                        self.path, self.version
                    );
                    match self.client.stream(&path, self.accept).await {
                        Ok(stream) => self.stream.insert(stream),
                        // The version is too old by now, or of another daemon.
                        Err(error) if error.message.contains("too old resource version") => {
                            self.version.clear();
                            continue;
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            match stream.line::<WatchEvent>().await? {
                Some(WatchEvent { kind: WatchKind::Bookmark, object }) => self.remember(&object),
                Some(WatchEvent { kind: WatchKind::Error, object }) => {
                    let status: Option<Status> = serde_json::from_value(object).ok();
                    if status.as_ref().is_none_or(|status| status.code != 410) {
                        let message = status.map(|status| status.message).unwrap_or_default();
                        return Err(CliError::new(format!("the watch failed: {message}")));
                    }
                    self.version.clear();
                    self.stream = None;
                }
                Some(WatchEvent { kind, object }) => {
                    self.remember(&object);
                    return Ok(News::Changed(kind, object));
                }
                None => {
                    self.stream = None;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn remember(&mut self, object: &Value) {
        if let Some(version) = object["metadata"]["resourceVersion"].as_str().filter(|text| !text.is_empty())
        {
            version.clone_into(&mut self.version);
        }
    }
}
