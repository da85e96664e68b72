//! Names of files.

use super::parse_name;

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[test]
fn only_names_that_blobs_have_are_taken_for_blobs() {
    let parsed = |name: &str| parse_name(name).map(|(digest, partial)| (digest.to_string(), partial));
    assert_eq!(parsed(&format!("sha256-{HEX}")), Some((format!("sha256:{HEX}"), false)));
    assert_eq!(parsed(&format!("sha256-{HEX}.ab.partial")), Some((format!("sha256:{HEX}"), true)));
    for other in ["", "lost+found", "sha256-", &format!("sha256-{HEX}.partial"), &format!("sha256-{HEX}x")] {
        assert_eq!(parsed(other), None, "{other}");
    }
}
