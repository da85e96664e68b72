//! Fixtures that the integration tests share.
// Each test file is a crate of its own, exports nothing, and uses a part of this.
#![allow(dead_code, unreachable_pub)]

pub(crate) mod disk;
pub(crate) mod oci;
pub(crate) mod registry;
pub(crate) mod tls;
pub(crate) mod tree;

/// Runs an ignored test of this file in a process with more in its environment.
pub(crate) async fn elsewhere(test: &str, environment: &[(&str, &str)]) {
    let ran = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored"])
        .envs(environment.iter().copied())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
}
