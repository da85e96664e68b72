//! The host's resolvers, as far as guests can use them.

use std::net::Ipv4Addr;

/// Where resolvers are listed; the second is what systemd-resolved forwards to when the first names
/// only its stub on a loopback address.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// As many as the C library uses (resolv.conf(5), MAXNS).
const MAX_RESOLVERS: usize = 3;

/// The host's IPv4 resolvers that a guest can reach, at most three; possibly none.
pub async fn resolvers() -> Vec<Ipv4Addr> {
    for file in FILES {
        let text = tokio::fs::read_to_string(file).await.unwrap_or_default();
        let found = parse_resolvers(&text);
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

/// The usable `nameserver` lines of a resolv.conf(5): a guest has its own loopback, and no IPv6.
pub fn parse_resolvers(text: &str) -> Vec<Ipv4Addr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok())?
        })
        .filter(|address: &Ipv4Addr| !address.is_loopback() && !address.is_unspecified())
        .take(MAX_RESOLVERS)
        .collect()
}
