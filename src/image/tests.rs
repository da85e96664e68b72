//! Manifests and configs, by value.

use super::manifest::{Config, Document};
use super::{Digest, ImageError, Limits, Reference};

const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn manifest(layers: &str) -> Result<Document, ImageError> {
    let config = format!(
        r#"{{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": "{DIGEST}", "size": 2}}"#
    );
    parse(&format!(r#"{{"schemaVersion": 2, "config": {config}, "layers": [{layers}]}}"#))
}

fn parse(text: &str) -> Result<Document, ImageError> {
    Document::parse(text.as_bytes(), &Limits::default())
}

fn layer(media_type: &str, digest: &str, size: &str) -> String {
    format!(r#"{{"mediaType": "{media_type}", "digest": "{digest}", "size": {size}}}"#)
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, ImageError>, reason: &str, words: &str) {
    let error = result.unwrap_err();
    assert_eq!((error.reason, error.transient), (reason, false), "{error}");
    assert!(error.message.contains(words), "{error}");
}

#[test]
fn manifests_name_layers_that_are_file_systems() {
    let gzip = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    let two = [layer(gzip, DIGEST, "5"), layer(gzip, DIGEST, "6")].join(",");
    let Document::Image(manifest_of_two) = manifest(&two).unwrap() else { panic!("not an image") };
    assert_eq!((manifest_of_two.layers.len(), manifest_of_two.size()), (2, 11));

    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    assert_refused(manifest(&layer(foreign, DIGEST, "5")), "InvalidImage", "is foreign");
    let encrypted = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
    assert_refused(manifest(&layer(encrypted, DIGEST, "5")), "InvalidImage", "is encrypted");
    assert_refused(
        manifest(&layer("application/octet-stream", DIGEST, "5")),
        "InvalidImage",
        "not supported",
    );
    assert_refused(manifest(&layer(gzip, "sha512:00", "5")), "InvalidImage", "sha512:00");
    assert_refused(manifest(&layer(gzip, &DIGEST.to_uppercase(), "5")), "InvalidImage", "digest");
    assert_refused(manifest(&layer(gzip, "sha256:../../etc", "5")), "InvalidImage", "digest");
    assert_refused(manifest(&layer(gzip, DIGEST, "-5")), "InvalidImage", "manifest");
    let huge = layer(gzip, DIGEST, &u64::MAX.to_string());
    assert_refused(manifest(&[huge.clone(), huge].join(",")), "LimitExceeded", "compressed_bytes");
    let config = |kind: &str, size: u64| {
        let config = layer(kind, DIGEST, &size.to_string());
        parse(&format!(r#"{{"schemaVersion": 2, "config": {config}, "layers": []}}"#))
    };
    let (artifact, docker) =
        ("application/vnd.cncf.helm.config.v1+json", "application/vnd.docker.container.image.v1+json");
    assert_refused(config(artifact, 2), "InvalidImage", "not a container image");
    assert!(config(docker, 8 << 20).is_ok());
    assert_refused(config(docker, (8 << 20) + 1), "LimitExceeded", "config_bytes");
    assert!(manifest(&vec![layer(gzip, DIGEST, "1"); 128].join(",")).is_ok());
    let many = vec![layer(gzip, DIGEST, "1"); 129].join(",");
    assert_refused(manifest(&many), "LimitExceeded", "layers=…");
}

#[test]
fn documents_are_either_images_or_indexes() {
    assert_refused(parse(r#"{"schemaVersion": 1}"#), "InvalidImage", "schema version 1");
    assert_refused(parse(r#"{"schemaVersion": 2}"#), "InvalidImage", "neither");
    assert_refused(
        parse(r#"{"schemaVersion": 2, "manifests": [], "layers": []}"#),
        "InvalidImage",
        "neither",
    );
    assert_refused(parse(r#"{"schemaVersion": 2, "manifests": []}"#), "InvalidImage", "no linux/amd64");
    assert_refused(parse(&"[".repeat(100_000)), "InvalidImage", "cannot be read");
    let entry =
        format!(r#"{{"digest": "{DIGEST}", "platform": {{"os": "linux", "architecture": "amd64"}}}}"#);
    let index = format!(r#"{{"schemaVersion": 2, "manifests": [{{"digest": "x"}}, {entry}]}}"#);
    assert!(matches!(parse(&index).unwrap(), Document::Index(entry) if entry.digest.as_str() == DIGEST));
}

#[test]
fn a_platform_has_several_spellings() {
    let index = |platform: &str| {
        parse(&format!(
            r#"{{"schemaVersion": 2, "manifests": [{{"digest": "{DIGEST}", "platform": {platform}}}]}}"#
        ))
    };
    for ours in [
        r#"{"os": "linux", "architecture": "x86_64"}"#,
        r#"{"os": "Linux", "architecture": "AMD64", "variant": "v1"}"#,
        r#"{"architecture": "x86-64"}"#,
    ] {
        assert!(index(ours).is_ok(), "{ours}");
    }
    for other in [r#"{"os": "linux"}"#, r#"{"os": "linux", "architecture": "arm64"}"#, "{}"] {
        assert_refused(index(other), "InvalidImage", "no linux/amd64");
    }
}

#[test]
fn configs_say_how_to_run() {
    let config = |os: &str, diff_ids: &str, run: &str| {
        let text = format!(
            r#"{{"os": "{os}", "architecture": "amd64", "rootfs": {{"diff_ids": {diff_ids}}}, "config": {run}}}"#
        );
        Config::parse(text.as_bytes(), 1)
    };
    let one = format!(r#"["{DIGEST}"]"#);
    let read =
        config("linux", &one, r#"{"Cmd": ["a"], "Entrypoint": null, "WorkingDir": "", "User": "7:8"}"#)
            .unwrap();
    assert_eq!(read.run.cmd, ["a"]);
    assert_eq!(read.run.entrypoint, [""; 0]);
    assert_eq!((read.run.working_dir, read.run.user.as_deref()), (None, Some("7:8")));
    assert!(config("linux", &one, "null").is_ok());
    assert_refused(config("windows", &one, "null"), "InvalidImage", "windows/amd64");
    assert_refused(config("linux", "null", "null"), "InvalidImage", "0 layers");
}

#[test]
fn references_can_be_read_back() {
    let reference: Reference = "registry.example:5000/team/app:1".parse().unwrap();
    assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
    let of = |length: usize| format!("a.lan/{}:1", "a/".repeat(length)).replace("/:", ":");
    assert!(of(500).len() <= 1024 && of(600).len() > 1024);
    assert!(of(600).parse::<Reference>().unwrap_err().to_string().contains("longer than 1024"));
    let upper = "Team/app:1".parse::<Reference>().unwrap_err().to_string();
    assert!(upper.contains("not an OCI reference"), "{upper}");
}

#[test]
fn digests_are_written_in_one_way() {
    assert!(DIGEST.parse::<Digest>().is_ok());
    let hex = &DIGEST[7..];
    for wrong in [hex.to_owned(), DIGEST[..70].to_owned(), format!("{DIGEST}0"), DIGEST.replace('a', "A")] {
        assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
    }
    assert!(format!("sha256:{}", hex.replace('0', "/")).parse::<Digest>().is_err(), "it names a file");
}

#[test]
fn messages_quote_little() {
    let long = format!(r#"{{"schemaVersion": "{}"}}"#, "x".repeat(100_000));
    assert!(parse(&long).unwrap_err().message.len() < 500);
    assert!("x".repeat(100_000).parse::<Digest>().unwrap_err().len() < 500);
}
