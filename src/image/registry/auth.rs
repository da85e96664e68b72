//! Gets us in: passwords, and the tokens that a registry's token service hands out
//! (distribution's "Token Authentication Specification", and its OAuth2 variant).

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;
use tokio::time::Instant;

use super::challenge::Challenge;
use super::credentials::{Credential, Secret};
use super::endpoint::Endpoint;
use super::{Failure, Registry, place};
use crate::image::ImageError;
use crate::metrics::Guarded;

/// Tokens are far smaller; what is larger is no token.
const TOKEN_BYTES: u64 = 64 << 10;
/// Authorizations are cheap to get again, so a full table is emptied.
const SESSIONS: usize = 1024;
/// What a token lives that does not say how long, by the specification.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// The longest that an authorization is used without being asked for again.
const LONGEST_LIFE: Duration = Duration::from_secs(60 * 60);
/// How long a password is used before the auth file is looked at again.
const PASSWORD_LIFE: Duration = Duration::from_secs(60);
/// Tokens end a little early here, so that none ends on its way.
const EARLY: Duration = Duration::from_secs(5);
/// As what we ask for tokens by OAuth2.
const CLIENT_ID: &str = "vmlet";

/// What convinced each endpoint last, by origin and repository.
#[derive(Default)]
pub(super) struct Sessions(Guarded<HashMap<(String, String), Session>>);

struct Session {
    authorization: HeaderValue,
    until: Instant,
}

impl Sessions {
    pub(super) fn get(&self, endpoint: &Endpoint) -> Option<HeaderValue> {
        let now = Instant::now();
        let session = |sessions: &mut HashMap<_, Session>| {
            let session = sessions.get(&key(endpoint)).filter(|session| session.until > now)?;
            Some(session.authorization.clone())
        };
        self.0.with(session)
    }

    fn put(&self, endpoint: &Endpoint, authorization: HeaderValue, life: Duration) {
        let until = Instant::now() + life.min(LONGEST_LIFE);
        self.0.with(|sessions| {
            if sessions.len() >= SESSIONS {
                sessions.clear();
            }
            sessions.insert(key(endpoint), Session { authorization, until });
        });
    }

    pub(super) fn forget(&self, endpoint: &Endpoint) {
        self.0.with(|sessions| sessions.remove(&key(endpoint)));
    }
}

fn key(endpoint: &Endpoint) -> (String, String) {
    (endpoint.host.clone(), endpoint.repository.clone())
}

/// What a registry may be convinced by.
#[derive(Default)]
pub(super) struct Entry {
    pub(super) authorization: Option<HeaderValue>,
    /// Why there may be nothing better.
    pub(super) trouble: Option<String>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<Secret>,
    access_token: Option<Secret>,
    expires_in: Option<u64>,
}

impl Registry {
    /// Meets one of the challenges; tokens are preferred to passwords.
    pub(super) async fn authorize(
        &self,
        endpoint: &Endpoint,
        challenges: &[Challenge],
    ) -> Result<Entry, Failure> {
        let found = self.credentials.find(&endpoint.host, &endpoint.repository).await;
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer { realm, service } => Some((realm, service.as_deref())),
            Challenge::Basic => None,
        });
        let (authorization, life) = match (bearer, &found.credential) {
            (Some((realm, service)), credential) => {
                let realm = self.realm(endpoint, realm)?;
                self.token(endpoint, realm, service, credential.as_ref()).await.map_err(|failure| {
                    let error = failure.error.because(found.trouble.as_deref());
                    Failure { error, ..failure }
                })?
            }
            (None, Some(Credential::Password { username, password }))
                if challenges.contains(&Challenge::Basic) =>
            {
                (basic(username, password), PASSWORD_LIFE)
            }
            _ => return Ok(Entry { authorization: None, trouble: found.trouble }),
        };
        self.sessions.put(endpoint, authorization.clone(), life);
        Ok(Entry { authorization: Some(authorization), trouble: found.trouble })
    }

    /// The token service's URL. Credentials go there, so it is as safe as the registry itself.
    fn realm(&self, endpoint: &Endpoint, realm: &str) -> Result<Url, ImageError> {
        let refuse = |message: String| ImageError::unauthorized(format!("{}: {message}", endpoint.host));
        let url: Url =
            realm.parse().map_err(|error| refuse(format!("its token service is no URL: {error}")))?;
        if self.transport.may_send(&endpoint.url("")?, &url) {
            Ok(url)
        } else {
            Err(refuse(format!("its token service {} is not https", place(&url))))
        }
    }

    async fn token(
        &self,
        endpoint: &Endpoint,
        realm: Url,
        service: Option<&str>,
        credential: Option<&Credential>,
    ) -> Result<(HeaderValue, Duration), Failure> {
        let response = match credential {
            Some(Credential::Identity(token)) => self.refresh(endpoint, &realm, service, token).await?,
            Some(Credential::Password { username, password }) => {
                self.ask_token(endpoint, &realm, service, Some((username, password))).await?
            }
            None => self.ask_token(endpoint, &realm, service, None).await?,
        };
        let refuse = |message: String| ImageError::unauthorized(format!("{}: {message}", endpoint.host));
        let status = response.status();
        if !status.is_success() {
            let error = format!("{}: {status}", place(&realm));
            return Err(match (status, credential) {
                _ if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                    Failure::asked_to_wait(error, response.headers())
                }
                (_, None) => refuse(format!("no anonymous access ({error}); is it in the auth file?")).into(),
                (_, Some(_)) => refuse(format!("the auth file's credentials are refused ({error})")).into(),
            });
        }
        let body = self.transport.body(response, TOKEN_BYTES).await?;
        let answer: TokenAnswer = serde_json::from_slice(&body)
            .map_err(|_| refuse(format!("{} answered with something that is no token", place(&realm))))?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.reveal().is_empty());
        let header = token.and_then(|token| sensitive(&format!("Bearer {}", token.reveal())));
        let header = header.ok_or_else(|| refuse(format!("{} answered without a token", place(&realm))))?;
        let life = answer.expires_in.filter(|seconds| *seconds > 0).map_or(TOKEN_LIFE, Duration::from_secs);
        Ok((header, life.saturating_sub(EARLY)))
    }

    /// By GET, with a password if there is one.
    async fn ask_token(
        &self,
        endpoint: &Endpoint,
        realm: &Url,
        service: Option<&str>,
        password: Option<(&str, &Secret)>,
    ) -> Result<Response, Failure> {
        let mut url = realm.clone();
        url.query_pairs_mut().append_pair("scope", &scope(endpoint));
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", service);
        }
        if let Some((username, _)) = password {
            url.query_pairs_mut().append_pair("account", username);
        }
        let authorization = password.map(|(username, password)| basic(username, password));
        self.transport.get(&endpoint.host, &url, &HeaderMap::new(), authorization.as_ref()).await
    }

    /// By OAuth2, with a refresh token. A redirect is not followed: the token is in the body.
    async fn refresh(
        &self,
        endpoint: &Endpoint,
        realm: &Url,
        service: Option<&str>,
        token: &Secret,
    ) -> Result<Response, Failure> {
        let scope = scope(endpoint);
        let form = [
            ("grant_type", "refresh_token"),
            ("client_id", CLIENT_ID),
            ("service", service.unwrap_or_default()),
            ("scope", &scope),
            ("refresh_token", token.reveal()),
        ];
        let client = self.transport.client(&endpoint.host, realm).await?;
        self.transport.send(client.post(realm.clone()).form(&form), realm).await
    }
}

fn scope(endpoint: &Endpoint) -> String {
    format!("repository:{}:pull", endpoint.repository)
}

fn basic(username: &str, password: &Secret) -> HeaderValue {
    let text = BASE64_STANDARD.encode(format!("{username}:{}", password.reveal()));
    sensitive(&format!("Basic {text}")).expect("base64 is printable")
}

/// A header that is not shown in logs; none if it is not printable.
fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::image::Settings;

    fn endpoint(registry: &Registry, repository: &str) -> Endpoint {
        let reference = format!("a.lan/{repository}:1").parse().unwrap();
        registry.endpoints(&reference).unwrap().pop().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn authorizations_end() {
        let registry = Registry::new(Arc::new(Settings::default())).unwrap();
        let (short, long) = (endpoint(&registry, "short"), endpoint(&registry, "long"));
        let (sessions, value) = (Sessions::default(), sensitive("Bearer t").unwrap());
        sessions.put(&short, value.clone(), Duration::from_secs(10));
        sessions.put(&long, value.clone(), Duration::MAX);
        assert_eq!(sessions.get(&endpoint(&registry, "other")), None, "each repository has its own");
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!((sessions.get(&short), sessions.get(&long)), (Some(value.clone()), Some(value.clone())));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((sessions.get(&short), sessions.get(&long)), (None, Some(value.clone())));
        tokio::time::advance(LONGEST_LIFE).await;
        assert_eq!(sessions.get(&long), None, "whatever the registry says");
    }

    #[tokio::test]
    async fn authorizations_are_bounded() {
        let registry = Registry::new(Arc::new(Settings::default())).unwrap();
        let (sessions, value) = (Sessions::default(), sensitive("Bearer t").unwrap());
        for number in 0..2 * SESSIONS + 1 {
            sessions.put(&endpoint(&registry, &number.to_string()), value.clone(), TOKEN_LIFE);
        }
        assert!(sessions.0.with(|sessions| sessions.len()) <= SESSIONS);
        assert_eq!(sessions.get(&endpoint(&registry, &(2 * SESSIONS).to_string())), Some(value));
    }

    #[test]
    fn authorizations_are_not_shown() {
        assert!(!format!("{:?}", basic("u", &Secret::new("hunter2"))).contains("Basic"));
        assert!(!format!("{:?}", sensitive("Bearer hunter2")).contains("hunter2"));
        assert_eq!(sensitive("Bearer a\nb"), None);
    }
}
