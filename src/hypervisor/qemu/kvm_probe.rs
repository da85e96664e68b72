//! Whether KVM really runs guest code.
//!
//! That `/dev/kvm` opens proves little: nested virtualisation without hardware support answers every
//! ioctl, then emulates each instruction, and fails at those that its emulator lacks. So this
//! runs a guest that does what kernels do: a long loop at full speed, `lock cmpxchg16b`,
//! `popcnt` and a breakpoint exception through the IDT, in 64-bit mode.
//!
//! It runs in a process of its own, because a hung `KVM_RUN` can only be killed.

use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit};

/// The hidden subcommand that makes this binary the probe.
pub(crate) const SUBCOMMAND: &str = "__kvm-probe";

/// Hardware needs about 10 ms for the loop, an emulator more than ten seconds.
const LIMIT: Duration = Duration::from_millis(1500);

/// Runs the probe in a child process. `helper` is this very binary.
///
/// # Errors
///
/// Why KVM cannot be used, as a clause for people.
pub(super) async fn probe(helper: &Path) -> Result<(), String> {
    let child = tokio::process::Command::new(helper)
        .arg(SUBCOMMAND)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("the probe cannot be started: {error}"))?;
    match tokio::time::timeout(LIMIT, child.wait_with_output()).await {
        Err(_) => {
            Err("/dev/kvm opens, but guest code runs too slowly (emulated, not in hardware)".to_owned())
        }
        Ok(Err(error)) => Err(format!("the probe failed: {error}")),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) if output.stdout.is_empty() => Err(format!("the probe failed: {}", output.status)),
        Ok(Ok(output)) => Err(String::from_utf8_lossy(&output.stdout).trim_end().to_owned()),
    }
}

/// Whether this process was started as the probe.
pub(crate) fn is_asked_for(argument: &OsString) -> bool {
    argument == SUBCOMMAND
}

/// The child's side: ends with 0 if KVM works, else says why not on standard output.
pub(crate) fn main() -> ! {
    let code = match run_guest() {
        Ok(()) => 0,
        Err(reason) => {
            println!("{reason}");
            1
        }
    };
    std::process::exit(code);
}

// The guest. Enters with RDI = the address of 16 zero bytes, and reports by writing SUM to PORT.
std::arch::global_asm!(
    ".pushsection .rodata.vmlet_kvm_probe, \"a\"",
    "vmlet_kvm_probe_start:",
    "mov ecx, 20000000",
    "2: dec ecx",
    "jnz 2b",
    "xor eax, eax",
    "xor edx, edx",
    "mov ebx, 17",
    "mov ecx, 34",
    "lock cmpxchg16b [rdi]",
    "jnz 3f",
    "mov eax, 255",
    "popcnt eax, eax",
    "xor ebx, ebx",
    "int3",
    "add eax, ebx",
    "add eax, [rdi]",
    "add eax, [rdi + 8]",
    "out 0x42, al",
    "3: hlt",
    "vmlet_kvm_probe_breakpoint:",
    "inc ebx",
    "iretq",
    "vmlet_kvm_probe_end:",
    ".popsection",
);

unsafe extern "C" {
    static vmlet_kvm_probe_start: u8;
    static vmlet_kvm_probe_breakpoint: u8;
    static vmlet_kvm_probe_end: u8;
}

const PORT: u16 = 0x42;
/// popcnt of 255, one breakpoint, and the two words that cmpxchg16b stored.
const SUM: u8 = 8 + 1 + 17 + 34;

// Guest-physical addresses, identity-mapped.
const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;
const PAGES: usize = 0x3000;
const GDT: usize = 0x4000;
const IDT: usize = 0x5000;
const DATA: usize = 0x6000;
const CODE: usize = 0x8000;
const STACK_TOP: usize = 0x1_0000;

/// Selector 8 of the GDT: present, 64-bit code, ring 0.
const CODE_DESCRIPTOR: u64 = 0x00AF_9B00_0000_FFFF;
const CODE_SELECTOR: u16 = 8;
/// The interrupt vector of `int3`.
const BREAKPOINT: usize = 3;

#[repr(C, align(4096))]
struct Memory([u8; STACK_TOP]);

impl Memory {
    fn put(&mut self, address: usize, bytes: &[u8]) {
        self.0[address..address + bytes.len()].copy_from_slice(bytes);
    }

    fn put_word(&mut self, address: usize, word: u64) {
        self.put(address, &word.to_le_bytes());
    }
}

/// Page tables, descriptor tables and code of the guest.
fn guest_memory() -> Box<Memory> {
    // SAFETY: the symbols delimit constant bytes in this binary's .rodata.
    let (code, breakpoint) = unsafe {
        let start = &raw const vmlet_kvm_probe_start;
        let length = (&raw const vmlet_kvm_probe_end).offset_from(start) as usize;
        let breakpoint = (&raw const vmlet_kvm_probe_breakpoint).offset_from(start) as usize;
        (std::slice::from_raw_parts(start, length), breakpoint)
    };
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    // Present interrupt gate, ring 0.
    const GATE: u64 = 0x8E00;
    let mut memory = Box::new(Memory([0; STACK_TOP]));
    memory.put_word(PML4, PDPT as u64 | PRESENT_WRITABLE);
    memory.put_word(PDPT, PAGES as u64 | PRESENT_WRITABLE);
    memory.put_word(PAGES, PRESENT_WRITABLE | LARGE);
    memory.put_word(GDT + usize::from(CODE_SELECTOR), CODE_DESCRIPTOR);
    let handler = (CODE + breakpoint) as u64;
    memory.put_word(IDT + BREAKPOINT * 16, handler | u64::from(CODE_SELECTOR) << 16 | GATE << 32);
    memory.put(CODE, code);
    memory
}

/// 64-bit mode with paging, as a boot loader leaves it.
fn long_mode(sregs: &mut kvm_sregs) {
    let code = kvm_segment {
        limit: u32::MAX,
        selector: CODE_SELECTOR,
        type_: 0xB,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let data = kvm_segment { selector: 0, type_: 3, l: 0, db: 1, ..code };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    sregs.gdt = kvm_dtable { base: GDT as u64, limit: 15, ..kvm_dtable::default() };
    sregs.idt = kvm_dtable { base: IDT as u64, limit: 0xFFF, ..kvm_dtable::default() };
    sregs.cr3 = PML4 as u64;
    // PAE; PE, ET, NE, PG; LME, LMA.
    sregs.cr4 = 1 << 5;
    sregs.cr0 = 1 | 1 << 4 | 1 << 5 | 1 << 31;
    sregs.efer = 1 << 8 | 1 << 10;
}

fn run_guest() -> Result<(), String> {
    fn context(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> String {
        move |error| format!("{what} failed: {error}")
    }
    let kvm = Kvm::new().map_err(|error| format!("/dev/kvm cannot be opened: {error}"))?;
    let vm = kvm.create_vm().map_err(context("KVM_CREATE_VM"))?;
    let memory = guest_memory();
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: size_of::<Memory>() as u64,
        userspace_addr: &raw const *memory as u64,
    };
    // SAFETY: the region is owned, page-aligned, and outlives the VM: both end with this function,
    // and `memory` is not looked at while the guest runs.
    unsafe { vm.set_user_memory_region(region) }.map_err(context("KVM_SET_USER_MEMORY_REGION"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(context("KVM_CREATE_VCPU"))?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(context("KVM_GET_SUPPORTED_CPUID"))?;
    vcpu.set_cpuid2(&cpuid).map_err(context("KVM_SET_CPUID2"))?;
    let mut sregs = vcpu.get_sregs().map_err(context("KVM_GET_SREGS"))?;
    long_mode(&mut sregs);
    vcpu.set_sregs(&sregs).map_err(context("KVM_SET_SREGS"))?;
    // Bit 1 of RFLAGS is always set.
    let regs = kvm_regs {
        rip: CODE as u64,
        rsp: STACK_TOP as u64,
        rdi: DATA as u64,
        rflags: 2,
        ..kvm_regs::default()
    };
    vcpu.set_regs(&regs).map_err(context("KVM_SET_REGS"))?;
    match vcpu.run().map_err(context("KVM_RUN"))? {
        VcpuExit::IoOut(PORT, [SUM]) => Ok(()),
        exit => Err(format!("/dev/kvm opens, but a test guest did not run to its end: {exit:?}")),
    }
}
