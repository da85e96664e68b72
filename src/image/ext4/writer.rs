//! The thread that writes file data.
//!
//! Large pieces go past the page cache where the file system allows it (`O_DIRECT`): making room in the
//! cache for a whole disk costs more than all else that writing does, pushes out what others have in it,
//! and leaves everything to be waited for at the end. Writes happen in the order in which they were asked
//! for, as blocks are freed and used again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use super::layout::BLOCK;

/// Bytes gathered before a write.
const CAPACITY: usize = 1 << 20;
/// Pieces that wait for the device.
const QUEUE: usize = 6;
/// Shorter pieces are better off in the page cache, which makes one write of many.
const DIRECT: usize = 64 << 10;

/// Bytes to be written, in memory as devices want it.
pub(super) struct Buffer {
    memory: Vec<u8>,
    /// Where in the memory a block begins.
    start: usize,
    length: usize,
}

impl Buffer {
    pub(super) fn new() -> Self {
        let memory = vec![0; CAPACITY + BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK).min(BLOCK);
        Buffer { memory, start, length: 0 }
    }

    /// Takes as much as fits, and says how much that is.
    pub(super) fn fill(&mut self, data: &[u8]) -> usize {
        let count = data.len().min(CAPACITY - self.length);
        let at = self.start + self.length;
        self.memory[at..at + count].copy_from_slice(&data[..count]);
        self.length += count;
        count
    }

    pub(super) fn filled(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }

    pub(super) fn is_full(&self) -> bool {
        self.length == CAPACITY
    }

    pub(super) fn clear(&mut self) {
        self.length = 0;
    }
}

/// The caller's end.
pub(super) struct Writer {
    pieces: SyncSender<(Buffer, u64)>,
    written: Receiver<Buffer>,
    thread: JoinHandle<io::Result<()>>,
}

impl Writer {
    /// Until [`Writer::finish`] the file's flags are the thread's.
    pub(super) fn start(file: &File) -> io::Result<Self> {
        let mut target = Target { file: file.try_clone()?, direct: false, may_be_direct: true };
        let (pieces, queue) = sync_channel::<(Buffer, u64)>(QUEUE);
        let (back, written) = sync_channel(QUEUE + 1);
        let work = move || {
            for (mut piece, offset) in queue {
                target.write(piece.filled(), offset)?;
                piece.clear();
                // Nobody needs it any more if there is no room.
                let _ = back.try_send(piece);
            }
            target.set_direct(false)
        };
        let thread = thread::Builder::new().name("disk".to_owned()).spawn(work)?;
        Ok(Writer { pieces, written, thread })
    }

    /// Has the buffer written at this byte of the file, and puts an empty one in its place. Fails if an
    /// earlier write failed.
    pub(super) fn write(self, buffer: &mut Buffer, offset: u64) -> io::Result<Self> {
        let empty = self.written.try_recv().unwrap_or_else(|_| Buffer::new());
        match self.pieces.send((std::mem::replace(buffer, empty), offset)) {
            Ok(()) => Ok(self),
            Err(_) => Err(self.finish().err().unwrap_or_else(|| io::Error::other("writing ended early"))),
        }
    }

    /// Waits until all is written.
    pub(super) fn finish(self) -> io::Result<()> {
        drop(self.pieces);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that writes panicked")))
    }
}

/// The thread's end.
struct Target {
    file: File,
    direct: bool,
    may_be_direct: bool,
}

impl Target {
    fn write(&mut self, data: &[u8], offset: u64) -> io::Result<()> {
        let whole = if offset.is_multiple_of(BLOCK as u64) { data.len() / BLOCK * BLOCK } else { 0 };
        let direct = if whole >= DIRECT && self.may_be_direct { whole } else { 0 };
        let (direct, rest) = data.split_at(direct);
        let rest_offset = offset + direct.len() as u64;
        if !direct.is_empty()
            && let Err(error) = self.write_direct(direct, offset)
        {
            // Devices may want more than whole blocks.
            if error.raw_os_error() != Some(Errno::INVAL.raw_os_error()) {
                return Err(error);
            }
            self.may_be_direct = false;
            return self.write(data, offset);
        }
        if rest.is_empty() {
            return Ok(());
        }
        self.set_direct(false)?;
        self.file.write_all_at(rest, rest_offset)
    }

    fn write_direct(&mut self, data: &[u8], offset: u64) -> io::Result<()> {
        self.set_direct(true)?;
        self.file.write_all_at(data, offset)
    }

    fn set_direct(&mut self, direct: bool) -> io::Result<()> {
        if direct != self.direct {
            let mut flags = fcntl_getfl(&self.file)?;
            flags.set(OFlags::DIRECT, direct);
            fcntl_setfl(&self.file, flags)?;
            self.direct = direct;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long and short, whole blocks and others, and over what was written before.
    #[test]
    fn pieces_are_written_whole_and_in_order() {
        let file = tempfile::tempfile().unwrap();
        let mut writer = Writer::start(&file).unwrap();
        let mut buffer = Buffer::new();
        let mut expected = vec![0; 3 << 20];
        let pieces = [
            (0, CAPACITY),
            (CAPACITY, DIRECT + 17),
            (2 << 20, 100),
            (4096, DIRECT),
            (4096, 5),
            (8192, 3 * BLOCK + 1),
        ];
        for (index, (offset, length)) in (1..).zip(pieces) {
            let data = vec![index; length];
            assert_eq!(buffer.fill(&data), length);
            expected[offset..offset + length].copy_from_slice(&data);
            writer = writer.write(&mut buffer, offset as u64).unwrap();
            assert!(buffer.filled().is_empty());
        }
        writer.finish().unwrap();
        let mut written = vec![0; expected.len()];
        let length = file.metadata().unwrap().len() as usize;
        file.read_exact_at(&mut written[..length], 0).unwrap();
        assert!(written == expected);
        assert!(!fcntl_getfl(&file).unwrap().contains(OFlags::DIRECT), "others write after it");
    }

    /// Asked to write from where no device reads, a file system refuses only the write itself.
    #[test]
    fn a_direct_write_that_is_refused_goes_through_the_cache() {
        let file = tempfile::tempfile().unwrap();
        let mut target = Target { file: file.try_clone().unwrap(), direct: false, may_be_direct: true };
        let mut buffer = Buffer::new();
        (0..CAPACITY / 100).for_each(|number| assert_eq!(buffer.fill(&[number as u8; 100]), 100));
        let odd = &buffer.filled()[1..=2 * DIRECT];
        target.write(odd, 0).unwrap();
        assert!(
            !target.may_be_direct,
            "nothing was refused: this test needs another file system for its files"
        );
        target.write(odd, (2 * DIRECT) as u64).unwrap();
        let mut written = vec![0; 4 * DIRECT];
        file.read_exact_at(&mut written, 0).unwrap();
        // From where no block begins the device is not even asked.
        let mut asked = Target { file: tempfile::tempfile().unwrap(), direct: false, may_be_direct: true };
        asked.write(&buffer.filled()[..2 * DIRECT], 7).unwrap();
        assert!(asked.may_be_direct && !asked.direct);
        assert!(written[..2 * DIRECT] == *odd && written[2 * DIRECT..] == *odd);
        assert!(!fcntl_getfl(&file).unwrap().contains(OFlags::DIRECT));
    }

    #[test]
    fn the_first_error_is_told() {
        let read_only = File::open("/proc/self/exe").unwrap();
        let mut buffer = Buffer::new();
        buffer.fill(&[1; 100]);
        let writer = Writer::start(&read_only).unwrap();
        let error = writer.write(&mut buffer, 0).and_then(Writer::finish).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::BADF.raw_os_error()));
    }
}
