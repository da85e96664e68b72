use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use insta::assert_snapshot;
use proptest::prelude::*;
use serde_json::json;

use super::super::*;
use crate::object::{AnyObject, Kind, Quantity};

/// What a file decodes to, for people.
fn shown(name: &str, text: impl AsRef<[u8]>) -> String {
    let decoded = decode(Path::new(name), text.as_ref());
    let mut shown = String::new();
    for located in &decoded.objects {
        writeln!(shown, "{} in line {}", located.object.key(), located.line).unwrap();
    }
    for diagnostic in &decoded.diagnostics {
        writeln!(shown, "{diagnostic}").unwrap();
    }
    shown
}

const VM: &str = "\
apiVersion: vmlet.dev/v1alpha1
kind: VM
metadata:
  name: web
spec:
  image: {name: debian}
";

/// A good start and some more lines of its spec.
fn vm(more: &str) -> String {
    format!("{VM}{more}")
}

#[test]
fn the_example_of_the_reference_is_good() {
    let page = reference();
    let example = page.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(shown("example.yaml", example), "image/debian in line 1\nvm/web in line 8\n");
}

#[test]
fn quantities_defaults_and_ignored_fields() {
    let text = vm("  memory: 1Gi\n  args:\nstatus: {anything: [at, all]}\n").replace(
        "  name: web\n",
        "  name: web\n  uid: x\n  creationTimestamp: null\n  labels: {80: \"1\"}\n",
    );
    let decoded = decode(Path::new("web.yaml"), text.as_bytes());
    assert_eq!(decoded.diagnostics, []);
    let AnyObject::Vm(vm) = &decoded.objects[0].object else { panic!("a VM") };
    assert_eq!(vm.spec.memory, Quantity::mebibytes(1024));
    assert_eq!((vm.spec.cpus, vm.spec.args.len(), vm.metadata.uid), (1, 0, None));
    assert_eq!(vm.metadata.labels["80"], "1");
}

#[test]
fn what_the_api_prints_is_a_manifest() {
    let decoded = decode(Path::new("web.yaml"), VM.as_bytes());
    let json = serde_json::to_string(&json!({
        "apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""},
        "items": [decoded.objects[0].object],
    }));
    let again = decode(Path::new("web.json"), json.unwrap().as_bytes());
    assert_eq!(again.diagnostics, []);
    assert_eq!(again.objects[0].object, decoded.objects[0].object);
}

#[test]
fn empty_documents_and_marks_are_skipped() {
    let text = format!("\u{feff}# nothing yet\n---\n---\n{VM}---\n~\n---\n# the end\n");
    assert_eq!(shown("a.yaml", text), "vm/web in line 4\n");
    assert_eq!(shown("a.yaml", "\r\n \n"), "");
    assert_eq!(shown("a.json", " \n"), "");
    assert_eq!(shown("a.yaml", VM.replace('\n', "\r\n")), "vm/web in line 1\n");
}

#[test]
fn unknown_fields() {
    assert_snapshot!(shown("broken.yaml", vm("  cpus: 1\n  runPolicy: Once\n  memroy: 256Mi\n")));
    assert_snapshot!(shown("broken.yaml", vm("  rootDisk: {size: 1Gi, zzzzzz: 1}\n  volumes: []\n")));
}

#[test]
fn missing_fields() {
    assert_snapshot!(shown(
        "broken.yaml",
        "apiVersion: vmlet.dev/v1alpha1\nkind: Image\nmetadata:\nspec:\n  source: {oci: {}}\n"
    ));
    assert_snapshot!(shown("broken.yaml", vm("  network:\n    ports:\n    - guest: 80\n    -\n")));
}

#[test]
fn wrong_types() {
    assert_snapshot!(shown(
        "broken.yaml",
        vm(
            "  cpus: \"2\"\n  memory: .inf\n  args: echo\n  command: [1, true, x]\n  network: [bridge]\n  terminationGracePeriodSeconds: 1.5\n"
        )
    ));
}

#[test]
fn wrong_values() {
    assert_snapshot!(shown(
        "broken.yaml",
        vm(
            "  memory: 12q\n  runPolicy: always\n  network:\n    mode: tap\n    address: 10.63.0.300\n    ports: [{host: 70000, guest: -1}]\n"
        )
    ));
}

#[test]
fn broken_rules() {
    assert_snapshot!(shown(
        "broken.yaml",
        vm("  cpus: 100\n  memory: 1Mi\n  env:\n  - name: A=B\n  network: {ports: [{host: 1, guest: 1}, {host: 1, guest: 2}]}\n")
            .replace("web", "Web_1").replace("name: debian", "name: debian, oci: a/b")
    ));
}

#[test]
fn sources_of_images() {
    let image = |source: &str| {
        format!(
            "apiVersion: vmlet.dev/v1alpha1\nkind: Image\nmetadata: {{name: i}}\nspec:\n  source:\n{source}"
        )
    };
    let broken = [
        "    oci: {reference: a}\n    files: {root: /a}\n",
        "    ociLayuot: {path: /a}\n",
        "    ociLayout: {path: a.tar, reference: ''}\n",
        "    bundle: {url: 'http://images.example/a', path: /a}\n",
        "    bundle: {path: /a, sha256: ABC}\n",
        "    files: {root: rel, initrd: /i, modules: 'm'}\n",
    ];
    let broken: Vec<String> = broken.into_iter().map(image).collect();
    assert_snapshot!(shown("broken.yaml", broken.join("---\n")));
}

#[test]
fn kernels_of_images() {
    let image = |kernel: &str| {
        format!(
            "apiVersion: vmlet.dev/v1alpha1\nkind: Image\nmetadata: {{name: i}}\nspec:\n  source:\n    oci: {{reference: a}}\n  kernel:\n{kernel}"
        )
    };
    let broken = [
        "    host: {}\n    image: {}\n",
        "    hots: {}\n",
        "    file: {kernel: vmlinuz, modules: ''}\n",
        "    image: {kernel: boot/vmlinuz}\n",
        "    oci: {reference: 'A B'}\n",
        "    commandLine: \"quiet\\nroot=/dev/vdz\"\n",
        "    commandLine: \"quiet Console=tty0 console=tty0 'panic=1' \\\"init=/bin/sh\\\" -- single\"\n",
    ];
    let broken: Vec<String> = broken.into_iter().map(image).collect();
    assert_snapshot!(shown("broken.yaml", broken.join("---\n")));
    let good = "    commandLine: loglevel=7 mitigations=auto console_x=1 my.console=2\n";
    assert!(shown("good.yaml", image(good)).starts_with("image/i in line 1"));
    let long = image(&format!("    commandLine: {}\n", "x".repeat(1025)));
    assert!(shown("broken.yaml", long).contains("at most 1024"));
}

#[test]
fn wrong_kinds() {
    assert_snapshot!(shown(
        "broken.yaml",
        "apiVersion: v1\nkind: Vm\n---\nkind: Imgae\n---\napiVersion: apps/v1\nkind: Deployment\n---\n- a list\n---\njust text\n"
    ));
}

#[test]
fn lists() {
    let item = "- apiVersion: vmlet.dev/v1alpha1\n  kind: VM\n  metadata: {name: web}\n  spec: {image: {name: a}, cpus: 0}\n";
    assert_snapshot!(shown(
        "broken.yaml",
        format!("apiVersion: v1\nkind: List\nitems:\n{item}- kind: List\n- 1\n")
    ));
    assert_snapshot!(shown("broken.yaml", "apiVersion: vmlet.dev/v1alpha1\nkind: VMList\nitems: {}\n"));
}

#[test]
fn duplicates() {
    assert_snapshot!(shown("broken.yaml", vm("  cpus: 1\n  cpus: 2\n  env: [{name: A, name: B}]\n")));
    assert_snapshot!(shown("broken.yaml", format!("{VM}---\n{VM}")));
}

#[test]
fn syntax_errors_end_the_file_but_not_what_was_before() {
    assert_snapshot!(shown("broken.yaml", format!("{VM}---\na: [1\n---\n{VM}")));
    assert_snapshot!(shown("broken.yaml", vm("\tcpus: 1\n")));
    assert_snapshot!(shown("broken.yaml", vm("  user: \"root\n")));
    assert_snapshot!(shown("broken.yaml", vm("  user: a\u{7}b\n")));
    assert_snapshot!(shown("broken.yaml", "a: {{ .Values.name }}\n"));
}

#[test]
fn yaml_that_manifests_do_not_use() {
    assert_snapshot!(shown("broken.yaml", vm("  user: &a root\n  workingDir: *a\n  memory: !ram 1Gi\n")));
    assert_eq!(shown("good.yaml", vm("  user: !!str 1000\n  workingDir: &a /tmp\n")), "vm/web in line 1\n");
}

#[test]
fn bytes_that_are_not_text() {
    assert_snapshot!(shown("broken.yaml", b"a: 1\nb: caf\xe9\n"));
    assert_snapshot!(shown("broken.yaml", b"\xff\xfea\0"));
}

#[test]
fn json_errors() {
    assert_snapshot!(shown("broken.json", "{\n\t\"apiVersion\": \"vmlet.dev/v1alpha1\",\n}"));
    assert_snapshot!(shown(
        "broken.json",
        "{\n\t\"apiVersion\": \"vmlet.dev/v1alpha1\", \"kind\": \"VM\",\n\t\"metadata\": {\"name\": \"a\", \"annotations\": {\"mood\": \"\\ud83d\\ude00\"}},\n\t\"spec\": {\"image\": {\"name\": \"a\"}, \"cpu\": 1, \"cpu\": 2}\n}"
    ));
    assert_snapshot!(shown(
        "broken.json",
        "{\n\t\"apiVersion\": \"vmlet.dev/v1alpha1\", \"kind\": \"VM\",\n\t\"metadata\": {\"name\": \"a\", \"annotations\": {\"mood\": \"\\ud83d\\ude00\"}},\n\t\"spec\": {\"image\": {\"name\": \"a\"}, \"cpu\": 1}\n}"
    ));
}

#[test]
fn long_lines_are_quoted_in_part_and_control_characters_not_at_all() {
    let text =
        format!("{VM}  command: [{}, 7, \"\u{1b}[31m\"]\n", "word, ".repeat(100).trim_end_matches(", "));
    assert_snapshot!(shown("broken.yaml", text.replace('\u{1b}', "\\e")));
    let text = vm(&format!("  \"\\e[31m{}\": 1\n", "x".repeat(1000)));
    let shown = shown("broken.yaml", &text);
    assert!(!shown.contains('\u{1b}') && shown.len() < 2000, "{shown}");
}

#[test]
fn a_diagnostic_for_programs() {
    let decoded = decode(Path::new("broken.yaml"), vm("  memroy: 256Mi\n").as_bytes());
    assert_eq!(
        serde_json::to_value(&decoded.diagnostics).unwrap(),
        json!([{
            "path": "broken.yaml", "line": 7, "column": 3, "width": 6, "field": "spec.memroy",
            "message": "spec.memroy is not a field of VM", "hint": "did you mean `memory`?",
            "snippet": "  memroy: 256Mi", "snippetColumn": 1,
        }])
    );
}

/// Each would take seconds or gigabytes, or overflow the stack, if it were taken at its word.
/// What this thread has had of a processor, however busy the host is (proc(5), schedstat).
fn processor_time() -> Duration {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(schedstat.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn bombs_are_cheap() {
    let laughs: String = (1..30).map(|n| format!("a{n}: &a{n} [*a{0}, *a{0}, *a{0}]\n", n - 1)).collect();
    let bombs = [
        "[".repeat(400_000),
        "{a: ".repeat(200_000),
        "- ".repeat(400_000),
        "? ".repeat(400_000),
        format!("a0: &a0 [x]\n{laughs}"),
        "---\n".repeat(200_000),
        "a\n---\n".repeat(150_000),
        format!("[{}]", "1,".repeat(500_000)),
        (0..90_000).map(|n| format!("k{n}: 1\n")).collect(),
        vm(&(0..90_000).map(|n| format!("  k{n}: 1\n")).collect::<String>()),
        vm(&format!("  command: [{}]\n", "1, ".repeat(190_000))),
        vm(&format!("  {}: 1\n", "x".repeat(900_000))),
        format!("apiVersion: v1\nkind: List\nitems: [{}]\n", "{kind: VM}, ".repeat(60_000)),
        format!("\"{}", "\\".repeat(1_000_000)),
        "\u{2028}".repeat(300_000) + "]",
        " ".repeat(2 << 20),
    ];
    for bomb in &bombs {
        for name in ["bomb.yaml", "bomb.json"] {
            let start = processor_time();
            let decoded = decode(Path::new(name), bomb.as_bytes());
            let took = processor_time() - start;
            let start_of: String = bomb.chars().take(20).collect();
            assert!(took < Duration::from_secs(5), "{name} {start_of} took {took:?}");
            assert!(decoded.objects.is_empty() && decoded.diagnostics.len() <= 101, "{name} {start_of}");
            let size: usize = decoded.diagnostics.iter().map(|diagnostic| diagnostic.to_string().len()).sum();
            assert!(size < 300_000, "{name} {start_of}: {size}");
        }
    }
}

#[test]
fn texts_are_as_deep_and_as_long_as_they_may_be() {
    use super::super::tree::{MAX_DEPTH, read};
    let end = |text: String| read(&text).end.map(|trouble| trouble.message);
    let nested = |lists: usize| format!("{}{}", "[".repeat(lists), "]".repeat(lists));
    // The outermost is at no depth.
    assert_eq!(end(nested(MAX_DEPTH + 1)), None);
    assert_eq!(end(nested(MAX_DEPTH + 2)).unwrap(), "nested more than 64 levels deep");
    assert_eq!(end("--- a\n".repeat(1000)), None);
    assert_eq!(end("--- a\n".repeat(1001)).unwrap(), "more than 1000 documents in one file");
    let values = |count: usize| format!("[{}]", "1,".repeat(count - 1));
    assert_eq!(end(values(200_000)), None);
    assert_eq!(end(values(200_001)).unwrap(), "more than 200000 values");
}

#[test]
fn what_passes_the_shape_has_a_type() {
    // Every leaf of every shape, with a value at its limits.
    let value = json!({
        "apiVersion": "vmlet.dev/v1alpha1", "kind": "VM", "metadata": {"name": "a"},
        "spec": {
            "image": {"name": "a"}, "cpus": u32::MAX, "memory": u64::MAX, "terminationGracePeriodSeconds": u32::MAX,
            "network": {"address": "255.255.255.255", "ports": [{"host": u16::MAX, "guest": 0, "protocol": "UDP"}]},
        }
    });
    let findings = object_from_value(value).unwrap_err();
    assert!(findings.iter().all(|finding| finding.path.starts_with("spec.")), "{findings:?}");
}

#[test]
fn every_kind_has_a_schema() {
    for kind in Kind::ALL {
        assert_eq!(schema(kind)["required"], json!(["apiVersion", "kind", "metadata", "spec"]));
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes: Vec<u8>, json: bool) {
        decode(Path::new(if json { "a.json" } else { "a.yaml" }), &bytes);
    }

    #[test]
    fn no_text_panics(text in "[\\[\\]{}:,\\-?&*!|>'\"%@`# \n\ta-c0\\\\ué\u{2028}]{0,60}", json: bool) {
        let decoded = decode(Path::new(if json { "a.json" } else { "a.yaml" }), text.as_bytes());
        for diagnostic in decoded.diagnostics {
            let _ = diagnostic.to_string();
        }
    }

    /// Any change of one place of a good manifest gives an object or an error that points into the file.
    #[test]
    fn a_damaged_manifest_is_explained(at in 0_usize..400, cut in 0_usize..30, insert in "[ -~\n\t]{0,8}") {
        let mut text = format!("{VM}  cpus: 2\n  env: [{{name: A, value: b}}]\n  network:\n    ports:\n    - {{host: 8080, guest: 80}}\n");
        let at = at % text.len();
        text.replace_range(at..(at + cut).min(text.len()), &insert);
        let decoded = decode(Path::new("a.yaml"), text.as_bytes());
        for diagnostic in &decoded.diagnostics {
            prop_assert!(diagnostic.line as usize <= text.lines().count() + 1, "{diagnostic}");
            prop_assert!(!diagnostic.message.is_empty());
        }
        let blank = text.trim().is_empty();
        prop_assert!(blank || !decoded.objects.is_empty() || !decoded.diagnostics.is_empty() || !text.contains(':'));
    }
}
