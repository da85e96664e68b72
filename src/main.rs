//! The one binary.

fn main() {
    vmlet::hypervisor::run_if_helper();
}
