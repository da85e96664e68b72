//! What compressed modules and compressed kernels hold.
//!
//! A kernel is unpacked as the kernel's own boot code does it (Documentation/arch/x86/boot.rst): its header says
//! where in the file the compressed ELF is, and the last four bytes there how long it is unpacked.

use std::borrow::Cow;
use std::io::{self, Read};

/// The dictionary that xz may use, in KiB. Kernels are packed with one of 32 MiB.
const XZ_MEMORY: u32 = 160 << 10;
/// The longest kernel, unpacked, in bytes; today's have some 50 MiB.
const MAX_ELF: usize = 512 << 20;

/// Offsets in a bzImage.
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const PROTOCOL: usize = 0x206;
const KERNEL_VERSION: usize = 0x20e;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// The first protocol whose header tells of the payload.
const WITH_PAYLOAD: u16 = 0x208;
/// Bytes from the start of a bzImage that hold its header and its version, wherever that is.
pub(super) const HEADER: u64 = 0x10_400;

/// Whether this is an x86 kernel as it is installed.
pub(super) fn is_bzimage(kernel: &[u8]) -> bool {
    kernel.get(MAGIC..MAGIC + 4) == Some(b"HdrS")
}

/// Whether this is an ELF file for 64-bit x86.
pub(super) fn is_elf(kernel: &[u8]) -> bool {
    const X86_64: u16 = 62;
    kernel.starts_with(b"\x7fELF\x02\x01") && u16_at(kernel, 18) == Some(X86_64)
}

/// The release that a bzImage says it is: `6.1.0-56-cloud-amd64`. Its first [`HEADER`] bytes suffice.
pub(super) fn release(kernel: &[u8]) -> Option<&str> {
    if !is_bzimage(kernel) {
        return None;
    }
    let start = usize::from(u16_at(kernel, KERNEL_VERSION).filter(|offset| *offset > 0)?) + 0x200;
    let text = kernel.get(start..)?;
    let text = &text[..text.iter().position(|byte| matches!(byte, 0 | b' '))?];
    let text = std::str::from_utf8(text).ok()?;
    let sane = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+' | '~');
    let named =
        text.len() <= 128 && text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(sane);
    named.then_some(text)
}

/// The uncompressed ELF of a kernel: the kernel itself, or what is packed in it.
///
/// # Errors
/// What is wrong with it, for people.
pub(super) fn elf(kernel: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    if is_elf(kernel) {
        return Ok(Cow::Borrowed(kernel));
    }
    if !is_bzimage(kernel) {
        return Err("it is neither a bzImage nor a 64-bit ELF".to_owned());
    }
    let payload = payload(kernel).ok_or("its header does not say where the kernel is packed in it")?;
    let length = payload.len().checked_sub(4).and_then(|at| u32_at(payload, at)).unwrap_or(0) as usize;
    if length > MAX_ELF {
        return Err(format!(
            "it says that it is {length} bytes long unpacked; at most {MAX_ELF} are possible"
        ));
    }
    let elf = inflate(&payload[..payload.len() - 4], length)?;
    if is_elf(&elf) { Ok(Cow::Owned(elf)) } else { Err("what is packed in it is no 64-bit ELF".to_owned()) }
}

fn payload(kernel: &[u8]) -> Option<&[u8]> {
    if u16_at(kernel, PROTOCOL)? < WITH_PAYLOAD {
        return None;
    }
    // 0 stands for 4, for reasons of history.
    let sectors = match kernel[SETUP_SECTORS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = ((sectors + 1) * 512).checked_add(u32_at(kernel, PAYLOAD_OFFSET)? as usize)?;
    let payload = kernel.get(start..start.checked_add(u32_at(kernel, PAYLOAD_LENGTH)? as usize)?)?;
    (payload.len() > 8).then_some(payload)
}

/// Exactly `length` bytes.
fn inflate(packed: &[u8], length: usize) -> Result<Vec<u8>, String> {
    let known: [(&[u8], &str); 2] = [(b"BZh", "bzip2"), (&[0x89, b'L', b'Z', b'O'], "lzo")];
    let mut bytes = Vec::new();
    let read = match packed {
        [0x02, 0x21, 0x4c, 0x18, blocks @ ..] => lz4(blocks, length).map(|unpacked| bytes = unpacked),
        [0x1f, 0x8b, ..] => take(flate2::read::GzDecoder::new(packed), length, &mut bytes),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => zstd::Decoder::with_buffer(packed)
            .and_then(|decoder| take(decoder.single_frame(), length, &mut bytes)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            take(lzma_rust2::XzReader::new_mem_limit(packed, false, XZ_MEMORY), length, &mut bytes)
        }
        // Dictionary and length follow; with neither a name nor a checksum, this is all that tells it.
        [0x5d, 0, 0, ..] => lzma_rust2::LzmaReader::new_mem_limit(packed, XZ_MEMORY, None)
            .and_then(|reader| take(reader, length, &mut bytes)),
        _ => {
            let name = known.iter().find(|(magic, _)| packed.starts_with(magic));
            let name = name.map_or("something unknown", |(_, name)| name);
            return Err(format!("it is packed with {name}; gzip, xz, lzma, zstd and lz4 can be unpacked"));
        }
    };
    read.map_err(|error| format!("it cannot be unpacked: {error}"))?;
    if bytes.len() == length { Ok(bytes) } else { Err("it is not as long as it says".to_owned()) }
}

/// One byte more than expected tells of a lie.
fn take(reader: impl Read, length: usize, bytes: &mut Vec<u8>) -> io::Result<()> {
    reader.take(length as u64 + 1).read_to_end(bytes).map(drop)
}

/// LZ4's legacy frame: blocks of up to 8 MiB, each after its packed length.
fn lz4(mut blocks: &[u8], length: usize) -> io::Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let mut bytes = vec![0; length];
    let mut done = 0;
    while let Some(size) = u32_at(blocks, 0).filter(|_| done < length) {
        let block = blocks.get(4..4 + size as usize).ok_or(io::ErrorKind::UnexpectedEof)?;
        let end = (done + BLOCK).min(length);
        done += lz4_flex::block::decompress_into(block, &mut bytes[done..end]).map_err(io::Error::other)?;
        blocks = &blocks[4 + size as usize..];
        if size == 0 {
            break;
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}

/// Whether an ELF kernel says where a PVH loader enters it (the note `XEN_ELFNOTE_PHYS32_ENTRY`,
/// include/xen/interface/elfnote.h): QEMU boots no other ELF.
pub(super) fn has_pvh_entry(elf: &[u8]) -> bool {
    const PT_NOTE: u32 = 4;
    let headers = || -> Option<Vec<&[u8]>> {
        let (start, size, count) = (u64_at(elf, 32)?, u16_at(elf, 54)?, u16_at(elf, 56)?);
        let mut notes = Vec::new();
        for index in 0..u64::from(count) {
            let at = usize::try_from(start.checked_add(index * u64::from(size))?).ok()?;
            if u32_at(elf, at)? == PT_NOTE {
                let (offset, length) = (u64_at(elf, at.checked_add(8)?)?, u64_at(elf, at.checked_add(32)?)?);
                let (offset, length) = (usize::try_from(offset).ok()?, usize::try_from(length).ok()?);
                notes.push(elf.get(offset..offset.checked_add(length)?)?);
            }
        }
        Some(notes)
    };
    headers().unwrap_or_default().into_iter().any(notes_pvh)
}

/// Notes: lengths of name and content, type, then both, each padded to four bytes (elf(5)).
fn notes_pvh(mut notes: &[u8]) -> bool {
    const PHYS32_ENTRY: u32 = 18;
    while let (Some(name), Some(content), Some(kind)) = (u32_at(notes, 0), u32_at(notes, 4), u32_at(notes, 8))
    {
        let (name, content) = (name as usize, content as usize);
        if kind == PHYS32_ENTRY && notes.get(12..12 + name) == Some(b"Xen\0") {
            return true;
        }
        let length = 12 + name.next_multiple_of(4) + content.next_multiple_of(4);
        match notes.get(length..) {
            Some(rest) => notes = rest,
            None => return false,
        }
    }
    false
}

/// A module's bytes: plain, or as its name's extension says.
///
/// # Errors
/// What is wrong with it.
pub(super) fn module(packed: Vec<u8>, extension: &str, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let reader: Box<dyn Read + '_> = match extension {
        "gz" => Box::new(flate2::read::MultiGzDecoder::new(&*packed)),
        "zst" => Box::new(zstd::Decoder::with_buffer(&*packed)?),
        "xz" => Box::new(lzma_rust2::XzReader::new_mem_limit(&*packed, true, XZ_MEMORY)),
        _ => return Ok(packed),
    };
    reader.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(io::Error::other("over 64 MiB")) } else { Ok(bytes) }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}
