//! The client of the API: HTTP/1 over the daemon's unix socket, one connection a request.

use std::io::ErrorKind;
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::error::CliError;
use crate::api::channel::{MAX_MESSAGE, PROTOCOL};
use crate::api::types::Status;

/// The longest answer that is read whole, in bytes.
const MAX_ANSWER: usize = 256 << 20;
/// The longest line of a stream, in bytes.
const MAX_LINE: usize = 8 << 20;

/// Asks for a table instead of objects.
pub(super) const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
/// Asks for the objects themselves.
pub(super) const JSON: &str = "application/json";

/// Talks to the daemon.
#[derive(Clone, Debug)]
pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the daemon on this socket, a path or `unix://PATH`.
    pub(super) fn new(host: &str) -> Self {
        Client { socket: host.strip_prefix("unix://").unwrap_or(host).into() }
    }

    /// The daemon's socket.
    pub(super) fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// Gets a JSON document.
    ///
    /// # Errors
    /// When no daemon answers, or it refuses: then in its words.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str, accept: &str) -> Result<T, CliError> {
        understood(path, &read_all(self.request(Method::GET, path, accept).await?).await?)
    }

    /// Gets a document as it is.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(super) async fn bytes(&self, path: &str) -> Result<Bytes, CliError> {
        read_all(self.request(Method::GET, path, JSON).await?).await
    }

    /// The daemon's process id, as the kernel knows it.
    ///
    /// # Errors
    /// When no daemon answers.
    pub(super) async fn daemon_pid(&self) -> Result<Option<i32>, CliError> {
        let peer = self.connect().await?.peer_cred()?;
        Ok(peer.pid())
    }

    /// Asks for the deletion of an object.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(super) async fn delete(&self, path: &str) -> Result<(), CliError> {
        read_all(self.request(Method::DELETE, path, JSON).await?).await.map(drop)
    }

    /// Has something done, and gets the answer.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str, order: &Value) -> Result<T, CliError> {
        understood(path, &read_all(self.ask(Method::POST, path, JSON, order.to_string()).await?).await?)
    }

    /// Has something removed, and gets the answer.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(super) async fn remove<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        understood(path, &read_all(self.request(Method::DELETE, path, JSON).await?).await?)
    }

    /// Gets an answer that goes on.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(super) async fn stream(&self, path: &str, accept: &str) -> Result<Stream, CliError> {
        let body = self.request(Method::GET, path, accept).await?.into_body();
        Ok(Stream { body, rest: BytesMut::new() })
    }

    /// Has something done, and gets an answer that goes on.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(super) async fn post_stream(&self, path: &str, order: &Value) -> Result<Stream, CliError> {
        let body = self.ask(Method::POST, path, JSON, order.to_string()).await?.into_body();
        Ok(Stream { body, rest: BytesMut::new() })
    }

    /// Opens an interactive session.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(super) async fn session(&self, path: &str) -> Result<WebSocketStream<UnixStream>, CliError> {
        let stream = self.connect().await?;
        let broken = |error: WsError| CliError::new(format!("the session could not be opened: {error}"));
        let mut request = format!("ws://vmlet{path}").into_client_request().map_err(broken)?;
        request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
        let config =
            WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
        match tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await {
            Ok((socket, _)) => Ok(socket),
            Err(WsError::Http(response)) => {
                Err(refusal(response.status(), response.body().as_deref().unwrap_or_default()))
            }
            Err(error) => Err(broken(error)),
        }
    }

    /// Whether the daemon knows what is declared; if not yet, why.
    ///
    /// # Errors
    /// When no daemon answers.
    pub(super) async fn ready(&self) -> Result<Result<(), String>, CliError> {
        let response = self.send(Method::GET, "/readyz", JSON, String::new()).await?;
        let code = response.status();
        let body = read_all(response).await?;
        match code {
            StatusCode::OK => Ok(Ok(())),
            StatusCode::SERVICE_UNAVAILABLE => Ok(Err(refusal(code, &body).message)),
            _ => Err(refusal(code, &body)),
        }
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        accept: &str,
    ) -> Result<Response<Incoming>, CliError> {
        self.ask(method, path, accept, String::new()).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: String,
    ) -> Result<Response<Incoming>, CliError> {
        let response = self.send(method, path, accept, body).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status();
        Err(refusal(code, &read_all(response).await?))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: String,
    ) -> Result<Response<Incoming>, CliError> {
        let lost = |error: hyper::Error| CliError::new(format!("the daemon hung up: {error}"));
        let stream = TokioIo::new(self.connect().await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(lost)?;
        // It ends with the last use of the answer.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "vmlet")
            .header(header::ACCEPT, accept)
            .body(Full::<Bytes>::from(body))
            .map_err(|error| CliError::new(format!("{path} cannot be asked for: {error}")))?;
        sender.send_request(request).await.map_err(lost)
    }

    async fn connect(&self) -> Result<UnixStream, CliError> {
        UnixStream::connect(&self.socket).await.map_err(|error| {
            let socket = self.socket.display();
            match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                    CliError::new(format!("no daemon answers on {socket}"))
                        .hint("start it with `vmlet daemon`, or name its socket with --socket or VMLET_HOST")
                }
                ErrorKind::PermissionDenied => CliError::new(format!("you may not use {socket}"))
                    .hint("run vmlet as root or as a member of the socket's group"),
                _ => CliError::new(format!("cannot connect to {socket}: {error}")),
            }
        })
    }
}

/// An answer that goes on.
#[derive(Debug)]
pub(super) struct Stream {
    body: Incoming,
    rest: BytesMut,
}

impl Stream {
    /// The next bytes; none at the end. Cancel-safe.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, CliError> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|error| CliError::new(format!("the daemon hung up: {error}")))?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// The next JSON document, one a line; none at the end. Cancel-safe.
    ///
    /// # Errors
    /// When the connection breaks, or a line is not such a document.
    pub(super) async fn line<T: DeserializeOwned>(&mut self) -> Result<Option<T>, CliError> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(end + 1);
                let parsed = serde_json::from_slice(&line);
                return parsed.map(Some).map_err(|error| {
                    CliError::new(format!("the daemon sent a line that is not understood: {error}"))
                });
            }
            if self.rest.len() > MAX_LINE {
                return Err(CliError::new("the daemon sent a line without end"));
            }
            match self.chunk().await? {
                Some(chunk) => self.rest.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }
}

fn understood<T: DeserializeOwned>(path: &str, body: &[u8]) -> Result<T, CliError> {
    serde_json::from_slice(body).map_err(|error| {
        CliError::new(format!("the daemon's answer to {path} is not understood: {error}"))
            .hint("compare `vmlet version` of daemon and command line")
    })
}

async fn read_all(response: Response<Incoming>) -> Result<Bytes, CliError> {
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    Ok(body.map_err(|error| CliError::new(format!("the daemon's answer broke off: {error}")))?.to_bytes())
}

/// A refusal in the daemon's words.
fn refusal(code: StatusCode, body: &[u8]) -> CliError {
    let Ok(status) = serde_json::from_slice::<Status>(body) else {
        return CliError::new(format!("the daemon answered {code}"));
    };
    let error = CliError::new(status.message.clone());
    let hints: Vec<&str> = status.causes("Hint").collect();
    if !hints.is_empty() {
        return error.hint(hints.join("\nhint: "));
    }
    match status.cause("DeclaredIn") {
        Some(place) => error.hint(format!("edit {}", place.rsplit_once(':').map_or(place, |(file, _)| file))),
        None if status.reason == "NotFound" => error.hint("`vmlet get all -A` shows what there is"),
        None => error,
    }
}

/// A path with a query, properly escaped.
pub(super) fn with_query<'a>(path: &str, query: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let pairs: Vec<String> =
        query.into_iter().map(|(key, value)| format!("{key}={}", escape(value))).collect();
    if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
}

/// Percent-encoding of all but the unreserved characters (RFC 3986, section 2.3).
pub(super) fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}
