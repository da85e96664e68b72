//! How a registry asks to be convinced: the `WWW-Authenticate` header (RFC 9110, section 11.6.1). Pure.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// One way to authenticate.
#[derive(Debug, PartialEq)]
pub(super) enum Challenge {
    /// User name and password with each request.
    Basic,
    /// A token that `realm` hands out (distribution's "Token Authentication Specification").
    Bearer { realm: String, service: Option<String> },
}

/// The challenges that we can meet, of all headers, in their order.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(parse).collect()
}

fn parse(header: &str) -> Vec<Challenge> {
    let mut raw: Vec<(&str, Vec<(String, String)>)> = Vec::new();
    for element in elements(header) {
        // An element is a scheme, a scheme and its first parameter (or a token68), or a further parameter.
        let name = &element[..element.find('=').unwrap_or(element.len())];
        let parameter = match name.trim_end().split_once([' ', '\t']) {
            None if name.len() == element.len() => {
                raw.push((element, Vec::new()));
                continue;
            }
            None => element,
            Some((scheme, _)) => {
                raw.push((scheme, Vec::new()));
                element[scheme.len()..].trim_start()
            }
        };
        if let (Some((_, parameters)), Some((name, value))) = (raw.last_mut(), parameter.split_once('=')) {
            parameters.push((name.trim().to_ascii_lowercase(), unquoted(value.trim())));
        }
    }
    raw.into_iter().filter_map(|(scheme, parameters)| known(scheme, parameters)).collect()
}

fn known(scheme: &str, parameters: Vec<(String, String)>) -> Option<Challenge> {
    let mut parameters: std::collections::HashMap<_, _> = parameters.into_iter().collect();
    if scheme.eq_ignore_ascii_case("bearer") {
        let realm = parameters.remove("realm").filter(|realm| !realm.is_empty())?;
        Some(Challenge::Bearer { realm, service: parameters.remove("service") })
    } else {
        scheme.eq_ignore_ascii_case("basic").then_some(Challenge::Basic)
    }
}

/// The parts between commas that are not quoted.
fn elements(header: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    header
        .split(move |char| {
            let inside = quoted;
            match char {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                _ => {}
            }
            char == ',' && !inside
        })
        .map(str::trim)
        .filter(|element| !element.is_empty())
}

fn unquoted(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"') else { return value.to_owned() };
    let mut text = String::new();
    let mut chars = inner.chars();
    while let Some(char) = chars.next() {
        match char {
            '"' => return text,
            '\\' => text.extend(chars.next()),
            char => text.push(char),
        }
    }
    // Without its end, nobody knows what was meant.
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) }
    }

    #[test]
    fn one_challenge() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="a,b""#;
        assert_eq!(parse(hub), [bearer("https://auth.docker.io/token", Some("registry.docker.io"))]);
        assert_eq!(parse("bearer Realm=https://x/y , service=z"), [bearer("https://x/y", Some("z"))]);
        assert_eq!(parse(r#"Basic realm="x""#), [Challenge::Basic]);
        assert_eq!(parse("basic"), [Challenge::Basic]);
        assert_eq!(parse(r#"BEARER  realm = "a\"\\b""#), [bearer(r#"a"\b"#, None)]);
    }

    #[test]
    fn several_in_one_header() {
        let both = [Challenge::Basic, bearer("https://x/y?a=b,c", Some("s, t"))];
        assert_eq!(
            parse(r#"Basic realm="a, Bearer realm=evil", Bearer service="s, t",realm="https://x/y?a=b,c""#),
            both
        );
        let reversed = r#"Bearer realm="https://x/y?a=b,c",service="s, t",,Basic charset=UTF-8, realm=x"#;
        assert_eq!(parse(reversed).into_iter().rev().collect::<Vec<_>>(), both);
        assert_eq!(
            parse("Negotiate, Digest qop=auth, Basic realm=x, NTLM abc=="),
            [Challenge::Basic],
            "others are passed over"
        );
    }

    #[test]
    fn a_backslash_protects_what_is_quoted() {
        assert_eq!(parse(r#"Bearer realm="a\",b",service=c"#), [bearer("a\",b", Some("c"))]);
        assert_eq!(parse(r#"Bearer realm="a\\",service="b,c""#), [bearer("a\\", Some("b,c"))]);
        // Elsewhere it is a letter like any other.
        assert_eq!(parse(r#"Basic realm=a\"b,Bearer realm=x""#), [Challenge::Basic]);
    }

    #[test]
    fn nonsense_is_no_challenge() {
        for nonsense in [
            "",
            ",,,",
            "Bearer",
            r#"Bearer realm="unterminated"#,
            "Bearer realm=",
            "=",
            "Bearer =x",
            "realm=x",
        ] {
            assert_eq!(parse(nonsense), [], "{nonsense}");
        }
    }
}
