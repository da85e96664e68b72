//! `vmlet simulate`: what a repository's CI sees.

use std::fs;
use std::path::Path;

use insta::assert_snapshot;
use serde_json::Value;
use tempfile::TempDir;

use super::{outcome, vmlet};

const WEB: &str = "\
apiVersion: vmlet.dev/v1alpha1
kind: VM
metadata: {name: web}
spec: {image: {oci: 'registry.example/web:1'}, memory: 256Mi}
";
const JOB: &str = "\
apiVersion: vmlet.dev/v1alpha1
kind: VM
metadata: {name: job}
spec: {image: {oci: 'registry.example/job:1'}, memory: 256Mi, runPolicy: Once}
";

/// A repository: `m/` with a web server and a job, and scenarios beside it.
struct Repository(TempDir);

impl Repository {
    fn new() -> Self {
        let repository = Repository(tempfile::tempdir().unwrap());
        repository.write("m/web.yaml", WEB);
        repository.write("m/job.yaml", JOB);
        repository
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn run(&self, words: &[&str]) -> (i32, String, String) {
        let words = [&["simulate", "m"], words].concat();
        outcome(&vmlet(&words).current_dir(self.0.path()).output().unwrap())
    }

    /// The outcome of a scenario that says this beside its kind.
    fn try_out(&self, scenario: &str) -> (i32, String, String) {
        self.write("s.yaml", &format!("apiVersion: vmlet.dev/v1alpha1\nkind: Scenario\n{scenario}"));
        self.run(&["--scenario", "s.yaml"])
    }

    /// The violations of such a scenario.
    fn wrong(&self, scenario: &str) -> Vec<String> {
        let (code, stdout, stderr) = self.try_out(scenario);
        assert!(code < 2, "{stderr}");
        let wrong = stdout.lines().filter_map(|line| line.strip_prefix("wrong: "));
        let wrong: Vec<String> = wrong.map(str::to_owned).collect();
        assert_eq!(code, i32::from(!wrong.is_empty()), "{stdout}{stderr}");
        wrong
    }
}

#[test]
fn a_calm_day() {
    let repository = Repository::new();
    let (code, stdout, stderr) = repository.run(&[]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    // Without chance the times are those of the scripts. The job is ready while it runs.
    let (code, stdout, stderr) = repository.try_out("trouble: none\n");
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    assert_snapshot!("simulate_calm", stdout);
}

#[test]
fn a_bad_day() {
    let repository = Repository::new();
    let (code, stdout, stderr) = repository.try_out(
        "trouble: none
duration: 5m
images:
  registry.example/web:1: {pull: 10s, broken: true}
vms:
  job: {exit: {after: 20s, code: 3}}
steps:
  - {at: 1m, crash: 2s}
expect:
  - {object: vm/web, at: 2m, ready: true}
  - {object: vm/web, phase: Backoff, reason: NotFound}
  - {object: vm/job, ready: false, restartsAtMost: 0}
",
    );
    assert_eq!(code, 1);
    assert_snapshot!("simulate_bad", format!("{stdout}{stderr}"));
}

#[test]
fn what_is_not_expected_must_be_at_rest() {
    let repository = Repository::new();
    let broken = "images: {'registry.example/web:1': {missing: true}}\n";
    let wrong = repository.wrong(broken);
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert!(wrong[0].starts_with("vm/web, in the end: it is not ready: Backoff, NotFound"), "{wrong:?}");
    // What an expectation says of the restarts or of a time says nothing of the end.
    for more in ["{object: vm/web, restartsAtMost: 0}", "{object: vm/web, at: 1m, ready: false}"] {
        assert_eq!(repository.wrong(&format!("{broken}expect: [{more}]\n")), wrong);
    }
    assert_eq!(repository.wrong(&format!("{broken}expect: [{{object: vm/web, ready: false}}]\n")), [""; 0]);
    // It is ready now and then, and never at rest.
    let restless = "vms: {web: {exit: {after: 1m, code: 1}}}\nduration: 1h\n";
    assert!(!repository.wrong(restless).is_empty());
}

#[test]
fn every_expectation_can_fail() {
    let repository = Repository::new();
    let late = "duration: 2m\nimages: {'registry.example/web:1': {pull: 1m}}\n";
    for (expected, wrong) in [
        ("vm/web, at: 30s, ready: true", "s.yaml:5: vm/web, at 30s: it is not ready: Pulling: "),
        ("vm/web, ready: false", "s.yaml:5: vm/web, in the end: it is ready: Running, Ready: "),
        ("vm/web, phase: Stopped", "s.yaml:5: vm/web, in the end: its phase is Running, not Stopped: "),
        ("vm/web, reason: Done", "s.yaml:5: vm/web, in the end: its reason is Ready, not Done: "),
        ("vm/web, gone: true", "s.yaml:5: vm/web, in the end: it is still there: Running, Ready: "),
    ] {
        let found = repository.wrong(&format!("{late}expect: [{{object: {expected}}}]\n"));
        assert!(found.len() == 1 && found[0].starts_with(wrong), "{expected}: {found:?}");
    }
    let restarts =
        "vms: {web: {exit: {after: 1s, code: 1, times: 2}}}\nexpect: [{object: vm/web, restartsAtMost: N}]\n";
    let found = repository.wrong(&restarts.replace('N', "1"));
    assert_eq!(found, ["s.yaml:4: vm/web, in the end: it was started again 2 times, not 1 at most"]);
    assert_eq!(repository.wrong(&restarts.replace('N', "2")), [""; 0]);
    let gone = "steps: [{at: 1m, remove: job.yaml}]\nexpect: [{object: vm/job, at: 30s, gone: true}, {object: vm/job, ready: true}]\n";
    assert_eq!(repository.wrong(gone).len(), 2);
    assert_eq!(
        repository.wrong("steps: [{at: 1m, remove: job.yaml}]\nexpect: [{object: vm/job, gone: true}]\n"),
        [""; 0]
    );
}

#[test]
fn every_step_happens() {
    let repository = Repository::new();
    repository.write("next/web.yaml", &WEB.replace("256Mi", "512Mi"));
    repository.write("whole/web.yaml", &WEB.replace("256Mi", "1Gi"));
    let scenario = "duration: 1h
steps:
  - {at: 5m, apply: next/web.yaml}
  - {at: 10m, crash: 1s}
  - {at: 15m, reboot: 1m}
  - {at: 20m, killVmm: web}
  - {at: 25m, exit: {vm: web, code: 9}}
  - {at: 30m, failStore: true}
  - {at: 31m, apply: next}
  - {at: 35m, images: {'registry.example/web:1': {missing: true}}}
  - {at: 36m, trouble: rough}
  - {at: 36m, trouble: none}
  - {at: 40m, replace: whole}
  - {at: 50m, remove: web.yaml}
expect:
  - {object: vm/web, at: 50m, gone: false}
  - {object: vm/job, at: 50m, gone: true}
";
    let (code, stdout, stderr) = repository.try_out(scenario);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    for told in [
        "300.000s   -        script   web.yaml is written",
        "600.000s   -        script   the daemon is killed",
        "900.000s   -        script   the host reboots",
        "1200.000s   -        script   the VMM of vm/web is killed",
        "1500.000s   -        script   the workload of vm/web ends with code 9",
        "1800.000s   -        script   the store's next write fails",
        "1860.000s   -        script   web.yaml is written",
        "2100.000s   -        script   registry.example/web:1 behaves otherwise",
        "2160.000s   -        script   other trouble",
        "2400.000s   -        script   the folder is replaced",
        "3000.000s   -        script   web.yaml is removed",
    ] {
        assert!(stdout.contains(told), "{told}:\n{stdout}");
    }
}

#[test]
fn capacity_is_the_hosts() {
    let repository = Repository::new();
    assert_eq!(repository.wrong("capacity: {memory: 1Gi, cpus: 2}\n"), [""; 0]);
    let wrong = repository.wrong("capacity: {memory: 300Mi}\n");
    assert!(wrong.len() == 1 && wrong[0].contains("Waiting"), "{wrong:?}");
}

#[test]
fn errors_have_places() {
    let repository = Repository::new();
    repository.write("bad/web.yaml", &WEB.replace("memory", "memroy"));
    let (code, stdout, stderr) = repository.try_out(
        "duration: 10
trouble: ruff
images:
  registry.example/web:1: {pul: 3s}
",
    );
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert_snapshot!("simulate_fields", stderr);
    let (code, stdout, stderr) = repository.try_out(
        "images:
  registry.example/wep:1: {}
  'not a reference': {}
vms:
  wbe: {hangs: 1}
steps:
  - {at: 1h, crash: 1s}
  - {at: 1m}
  - {at: 1m, crash: 1s, reboot: 1s}
  - {at: 1m, remove: wep.yaml}
  - {at: 2m, remove: web.yaml}
  - {at: 3m, remove: web.yaml}
  - {at: 4m, apply: bad}
  - {at: 4m, failStore: false}
expect:
  - {object: vm/wbe, ready: true}
  - {object: vm/web}
  - {object: vm/web, gone: true, ready: true}
",
    );
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert_snapshot!("simulate_names", stderr);
    for (scenario, says) in [
        ("expect: [{object: web, ready: true}]\n", "\"web\" names no object"),
        ("steps: [{at: 4m, apply: nowhere}]\n", "nowhere: No such file or directory"),
        ("duration: 200h\n", "is more than a week"),
        ("---\nkind: Scenario\n", "a file holds one scenario"),
    ] {
        let (code, _, stderr) = repository.try_out(scenario);
        assert!(code == 2 && stderr.contains(says), "{stderr}");
    }
}

#[test]
fn wrong_use() {
    let repository = Repository::new();
    let code = |words: &[&str]| outcome(&vmlet(words).current_dir(repository.0.path()).output().unwrap());
    fs::create_dir(repository.0.path().join("empty")).unwrap();
    for words in [
        &["simulate", "empty"][..],
        &["simulate", "nowhere"],
        &["simulate", "m", "--scenario", "nowhere.yaml"],
        &["simulate", "m", "--seeds", "0"],
        &["simulate"],
    ] {
        let (code, stdout, stderr) = code(words);
        assert_eq!((code, stdout.as_str()), (2, ""), "{words:?}: {stderr}");
        assert!(stderr.contains("error: "), "{stderr}");
    }
    // A scenario among the manifests is told what it is.
    repository.write("m/s.yaml", "apiVersion: vmlet.dev/v1alpha1\nkind: Scenario\n");
    let (code, _, stderr) = code(&["simulate", "m"]);
    assert!(code == 2 && stderr.contains("a scenario belongs outside of the manifests folder"), "{stderr}");
}

#[test]
fn one_seed_one_output() {
    let repository = Repository::new();
    let scenario = "apiVersion: vmlet.dev/v1alpha1\nkind: Scenario\ntrouble: rough\nexpect: [{object: vm/web, restartsAtMost: 0}]\n";
    repository.write("s.yaml", scenario);
    let all = repository.run(&["--scenario", "s.yaml", "--seeds", "40"]);
    assert_eq!(all.0, 1, "no seed of a rough day restarts it:\n{}", all.1);
    assert_eq!(repository.run(&["--scenario", "s.yaml", "--seeds", "40"]), all);
    // The hint leads to the same.
    let command =
        all.2.lines().find_map(|line| line.strip_prefix("hint: replay it with: vmlet simulate m ")).unwrap();
    let words: Vec<&str> = command.split(' ').collect();
    assert_eq!(repository.run(&words), all);
    let json = |words: &[&str]| {
        let (code, stdout, stderr) = repository.run(&[words, &["-o", "json"]].concat());
        assert_eq!((code, stderr.as_str()), (1, ""));
        stdout
    };
    let (first, second) = (json(&words), json(&words));
    assert_eq!(first, second);
    let answer: Value = serde_json::from_str(&first).unwrap();
    assert_eq!(answer["asExpected"], false);
    assert!(!answer["end"]["violations"].as_array().unwrap().is_empty());
    assert_eq!(answer["end"]["replay"], format!("vmlet simulate m {command}").as_str());
    let kinds: Vec<&str> = answer["end"]["objects"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|object| object["kind"].as_str())
        .collect();
    assert_eq!(kinds, ["VM", "VM"]);
}

#[test]
fn the_example_repository_tests_itself() {
    let gitops = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/gitops");
    let mut script = assert_cmd::Command::new(gitops.join("ci.sh"));
    script.env("VMLET", env!("CARGO_BIN_EXE_vmlet"));
    let (code, stdout, stderr) = outcome(&script.output().unwrap());
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    assert_eq!(stdout.matches("20 seeds, all as expected").count(), 2, "{stdout}");
}
