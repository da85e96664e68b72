//! Builds the guest, so that the one binary carries it.
//!
//! The guest is a static binary of its own profile, and so a cargo run of its own, in a target folder of
//! its own: the outer cargo holds the lock of the usual one. That the host's build is checked, linted or
//! documented makes no difference to it.

use std::env;
use std::path::PathBuf;
use std::process::{Command, exit};

/// What the outer cargo, clippy or rustdoc set for their own ends.
const NOT_FOR_THE_GUEST: [&str; 10] = [
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_TARGET_DIR",
    "CLIPPY_ARGS",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "CARGO_MAKEFLAGS",
];

fn main() {
    for path in ["src/build.rs", "src/guest", "src/wire", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let variable = |name: &str| env::var(name).unwrap_or_else(|error| fail(&format!("{name}: {error}")));
    let target = variable("TARGET");
    let target_dir = PathBuf::from(variable("OUT_DIR")).join("guest");
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .current_dir(variable("CARGO_MANIFEST_DIR"))
        .args(["build", "--locked", "--package", "vmlet-guest", "--profile", "guest", "--target", &target])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    for name in NOT_FOR_THE_GUEST {
        cargo.env_remove(name);
    }
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("building the guest failed: {status}")),
        Err(error) => fail(&format!("cannot run cargo to build the guest: {error}")),
    }
    let guest = target_dir.join(&target).join("guest/vmlet-guest");
    println!("cargo::rustc-env=VMLET_GUEST={}", guest.display());
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}
