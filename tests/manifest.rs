//! Manifests from the outside: the reference page, the schemas, and a watched folder on a real filesystem.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "manifest/folder.rs"]
mod folder;

use std::path::Path;

use vmlet::manifest;
use vmlet::object::Kind;

#[test]
fn the_reference_pages_are_up_to_date() {
    up_to_date("docs/manifests.md", &manifest::reference());
    up_to_date("docs/scenarios.md", &vmlet::testing::reference());
}

fn up_to_date(page: &str, wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "{page} is out of date; run UPDATE_DOCS=1 cargo test --test manifest and commit it"
    );
}

/// What the page on images and the examples beside it show is what the checks take.
#[test]
fn images_are_shown_as_they_are_written() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/images.md")).unwrap();
    let blocks = page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    let files = std::fs::read_dir(root.join("examples/images")).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    let shown: Vec<String> = blocks.chain(files.map(|path| std::fs::read_to_string(path).unwrap())).collect();
    assert!(shown.len() >= 8, "{} found", shown.len());
    for text in shown {
        let state = manifest::FileState::of(Path::new("shown.yaml"), text.as_bytes());
        assert!(matches!(state, manifest::FileState::Good(_)), "{text}\n{state:?}");
    }
}

/// Kubernetes' rules for structural schemas, as far as these types can break them.
#[test]
fn crds_are_structural() {
    for kind in Kind::ALL {
        let crd = manifest::crd(kind);
        let version = &crd["spec"]["versions"][0];
        assert_eq!(crd["metadata"]["name"], format!("{}.vmlet.dev", kind.plural()));
        assert!(version["subresources"]["status"].is_object());
        check_structural(&version["schema"]["openAPIV3Schema"], "");
    }
}

fn check_structural(schema: &serde_json::Value, path: &str) {
    let object = schema.as_object().unwrap();
    for forbidden in ["$ref", "oneOf", "const", "allOf", "not"] {
        assert!(!object.contains_key(forbidden), "{path} has {forbidden}");
    }
    let typed = object.get("type").is_some_and(|kind| kind.is_string());
    let either = object.get("x-kubernetes-int-or-string").is_some();
    assert!(typed != either, "{path} has no single type: {schema}");
    if either {
        assert_eq!(schema["anyOf"], serde_json::json!([{"type": "integer"}, {"type": "string"}]));
    }
    for (name, inner) in object.get("properties").and_then(|all| all.as_object()).into_iter().flatten() {
        check_structural(inner, &format!("{path}.{name}"));
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(inner) = object.get(inner) {
            check_structural(inner, &format!("{path}[]"));
        }
    }
}
