//! The driver with the guest that vmlet ships: from boot files and a base disk to a workload's end.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use vmlet::agent::{Agent, ExecOutput, LogSink};
use vmlet::hypervisor::qemu::MachineSetting;
use vmlet::hypervisor::{Launch, VmmExit};
use vmlet_wire::{ExecRequest, GuestState};

use crate::support::{Host, LIMIT, Running, VMM_USER, run};

/// A busybox root as a base disk.
fn base_disk(host: &Host) -> std::path::PathBuf {
    let (root, disk) = (host.dir.path().join("busybox"), host.dir.path().join("busybox.ext4"));
    fs::create_dir_all(root.join("bin")).expect("made");
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("apt install busybox-static");
    for applet in ["sh", "cat", "sleep", "echo"] {
        symlink("busybox", root.join("bin").join(applet)).expect("linked");
    }
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    run("mke2fs", &["-q", "-t", "ext4", "-d", &text(&root), &text(&disk), "16M"]);
    disk
}

fn launch(host: &Host, script: &str) -> Launch {
    let mut launch = host.launch("web");
    launch.base_disk = base_disk(host);
    launch.vmm_user = Some(VMM_USER);
    launch.guest.workload.argv = ["sh", "-c", script].map(str::to_owned).to_vec();
    launch
}

async fn agent(host: &Host, vm: &Running<'_>) -> Agent {
    let stream = vm.stream().await;
    let logs = LogSink::new(host.dir.path().join("workload.log"), 1 << 20);
    let agent = tokio::time::timeout(LIMIT, Agent::connect(stream, logs)).await;
    agent.unwrap_or_else(|_| panic!("no handshake: {}", vm.words())).expect("a handshake")
}

async fn exit(vm: &Running<'_>) -> VmmExit {
    let exit = vm.exit().await;
    assert_eq!((exit.code, exit.signal), (Some(0), None), "{}", vm.words());
    exit
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_runs_to_its_end_on_every_machine() {
    for machine in [MachineSetting::Microvm, MachineSetting::Q35] {
        let host = Host::with_real_guest(machine).await;
        let vm = host.spawn(launch(&host, "echo hello; exit 7")).await;
        assert_eq!(exit(&vm).await.workload, Some(7), "{}", vm.words());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_is_looked_into_and_shut_down() {
    let host = Host::with_real_guest(MachineSetting::Auto).await;
    let script = "trap 'exit 5' TERM; echo up; while true; do sleep 1; done";
    let vm = host.spawn(launch(&host, script)).await;
    let agent = agent(&host, &vm).await;
    let mut state = agent.guest();
    let ready = state.wait_for(|state| *state == GuestState::Ready);
    tokio::time::timeout(LIMIT, ready).await.expect("in time").expect("the link holds");

    let argv = ["sh", "-c", "echo $((6 * 7))"].map(str::to_owned).to_vec();
    let mut session = agent.exec(ExecRequest { argv, ..ExecRequest::default() }).await.expect("it starts");
    let mut output = Vec::new();
    while let Some(part) =
        tokio::time::timeout(LIMIT, session.output.recv()).await.expect("the process ends in time")
    {
        match part {
            ExecOutput::Stdout(bytes) => output.extend(bytes),
            ExecOutput::Exit(code) => assert_eq!(code, 0),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(output, b"42\n");
    agent.shutdown(10).await.expect("it is acknowledged");
    assert_eq!(exit(&vm).await.workload, Some(5), "{}", vm.words());
    assert_eq!(fs::read(host.dir.path().join("workload.log")).expect("there"), b"up\n");
}
