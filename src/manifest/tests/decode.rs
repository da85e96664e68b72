use std::path::Path;

use super::super::*;

fn shown(name: &str, text: &str) -> String {
    let decoded = decode(Path::new(name), text.as_bytes());
    let mut shown: Vec<String> = decoded
        .objects
        .iter()
        .map(|located| format!("{} in line {}", located.object.key(), located.line))
        .collect();
    shown.extend(decoded.diagnostics.iter().map(ToString::to_string));
    shown.join("\n\n")
}

const VM: &str =
    "apiVersion: vmlet.dev/v1alpha1\nkind: VM\nmetadata: {name: web}\nspec:\n  image: {name: debian}\n";

#[test]
fn tmp() {
    for t in [
        format!("{VM}  cpus: 1\n  memory: 1Gi\n  memroy: 256Mi\n"),
        format!("{VM}---\n{VM}"),
        format!(
            "{VM}  cpus: \"2\"\n  args: echo\n  network: {{mode: bridged, address: 10.1, ports: [{{host: 70000, guest: 0}}, {{gost: 1}}]}}\n  memory: 12q\n"
        ),
        format!("{VM}  cpus: 1\n  cpus: 2\n  user: *x\n"),
        format!("{VM}  cpus: [1\n"),
        format!("{VM}\tcpus: 1\n"),
        format!("a: \u{1}\n"),
        "{{ .Values.x }}: 1".to_owned(),
        "kind: Vm\napiVersion: v1".to_owned(),
        "[".repeat(400_000),
        "- 1".to_owned(),
        format!(
            "apiVersion: v1\nkind: List\nitems:\n- kind: VM\n- apiVersion: {}\n  kind: VM\n  metadata: {{name: X}}\n  spec: {{image: {{name: a}}, cpus: 100}}",
            crate::object::API_VERSION
        ),
    ] {
        println!("{}\n=========", shown("x.yaml", &t));
    }
    for t in [
        "{\n\t\"a\": \"\\ud83d\\ude00\",\n\t\"kind\": \"VM\", \"apiVersion\": \"vmlet.dev/v1alpha1\", \"apiVersion\": 1\n}",
        "{\"a\": 1,}",
        "{} {}",
        "{\n\t\"a\": \"\\ud83d\\ude00\",\n\t\"kind\": \"VM\",\n\t\"apiVersion\": \"vmlet.dev/v1alpha1\",\n\t\"spce\": 1\n}",
    ] {
        println!("{}\n=========", shown("x.json", &t));
    }
}
