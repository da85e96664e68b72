//! The one binary: parse the command line, call one runner, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The daemon starts this binary again for work that needs a process of its own.
    vmlet::hypervisor::run_if_helper();
    vmlet::cli::main()
}
