//! Bearer tokens, fetched anonymously when a registry asks for one
//! (distribution's "Token Authentication Specification").

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use reqwest::Url;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use serde::Deserialize;

use super::{Failure, Registry, is_plain, place};
use crate::image::ImageError;

/// Tokens are far smaller; what is larger is no token.
const TOKEN_BYTES: u64 = 64 << 10;
/// Tokens are cheap to fetch again, so a full table is emptied.
const TOKENS: usize = 1024;

/// The last token of each registry and repository. One that has expired is found by its 401.
#[derive(Default)]
pub(super) struct Tokens(Mutex<HashMap<(String, String), String>>);

impl Tokens {
    pub(super) fn get(&self, registry: &str, repository: &str) -> Option<String> {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(&(registry.to_owned(), repository.to_owned())).cloned()
    }

    fn put(&self, registry: &str, repository: &str, token: String) {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= TOKENS {
            tokens.clear();
        }
        tokens.insert((registry.to_owned(), repository.to_owned()), token);
    }
}

/// Where to get a token.
#[derive(Debug, PartialEq)]
pub(super) struct Challenge {
    realm: String,
    service: Option<String>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Registry {
    pub(super) async fn fetch_token(
        &self,
        registry: &str,
        repository: &str,
        challenge: &Challenge,
    ) -> Result<String, Failure> {
        let refuse =
            |message: String| Failure::from(ImageError::unauthorized(format!("{registry}: {message}")));
        let mut realm: Url = challenge
            .realm
            .parse()
            .map_err(|error| refuse(format!("its token service is no URL: {error}")))?;
        if realm.scheme() != "https"
            && !(self.is_plain(registry) && is_plain(&self.settings.plain_http, &realm))
        {
            return Err(refuse(format!("its token service {} is not https", place(&realm))));
        }
        realm.query_pairs_mut().append_pair("scope", &format!("repository:{repository}:pull"));
        if let Some(service) = &challenge.service {
            realm.query_pairs_mut().append_pair("service", service);
        }
        let response = self.send(self.http.get(realm.clone()), &realm).await?;
        let status = response.status();
        if !status.is_success() {
            let error = format!("{}: {status}", place(&realm));
            return Err(match status.is_server_error() || status.as_u16() == 429 {
                true => Failure::broken(error),
                false => refuse(format!("no anonymous access ({error})")),
            });
        }
        let body = self.body(response, TOKEN_BYTES).await?;
        let answer: TokenAnswer = serde_json::from_slice(&body)
            .map_err(|_| refuse(format!("{} answered with something that is no token", place(&realm))))?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| refuse(format!("{} answered without a token", place(&realm))))?;
        self.tokens.put(registry, repository, token.clone());
        Ok(token)
    }
}

/// The first Bearer challenge with a realm (RFC 9110, section 11.6.1).
pub(super) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    headers.get_all(WWW_AUTHENTICATE).iter().find_map(|value| parse(value.to_str().ok()?))
}

fn parse(header: &str) -> Option<Challenge> {
    let (scheme, mut rest) = header.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service) = (None, None);
    while let Some((name, value)) = rest.split_once('=') {
        let (value, tail) = match value.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => value.split_at(value.find(',').unwrap_or(value.len())),
        };
        match name.trim_matches([' ', ',']).to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value.to_owned()),
            "service" => service = Some(value.to_owned()),
            _ => {}
        }
        rest = tail;
    }
    Some(Challenge { realm: realm?, service })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let found = |realm: &str, service: Option<&str>| {
            Some(Challenge { realm: realm.to_owned(), service: service.map(str::to_owned) })
        };
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="a,b""#;
        assert_eq!(parse(hub), found("https://auth.docker.io/token", Some("registry.docker.io")));
        assert_eq!(parse("bearer Realm=https://x/y , service=z"), found("https://x/y ", Some("z")));
        assert_eq!(parse(r#"Bearer realm="unterminated"#), None);
        assert_eq!(parse(r#"Basic realm="x""#), None);
        assert_eq!(parse("Bearer"), None);
    }
}
