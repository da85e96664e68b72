//! Decompression and diff_id, each on a thread of its own, beside whoever reads the tar.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use bytes::{Buf, Bytes};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use crate::image::limits::check;
use crate::image::{Digest, ImageError, Limits};

/// Bytes that move between the threads at once.
const CHUNK: usize = 256 << 10;
/// Chunks between two threads.
const QUEUE: usize = 8;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Frames without content (RFC 8878, 3.1.2), from 0x184d2a50 to 0x184d2a5f; a stream may begin with one.
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];
/// Compressors that other tools know and the OCI image-spec does not. No tar begins like this.
const FOREIGN: [([u8; 4], &str); 2] = [(*b"\xfd7zX", "xz"), (*b"\x04\x22\x4d\x18", "lz4")];

/// What the layers of one image may still inflate to.
pub(crate) struct Budget<'a> {
    limits: &'a Limits,
    used: u64,
    cancel: CancellationToken,
}

impl<'a> Budget<'a> {
    pub(crate) fn new(limits: &'a Limits, cancel: CancellationToken) -> Self {
        Budget { limits, used: 0, cancel }
    }

    /// Accounts for a chunk of a layer that is `compressed` bytes long and inflated to `layer`.
    fn spend(&mut self, chunk: usize, layer: u64, compressed: u64) -> Result<(), ImageError> {
        if self.cancel.is_cancelled() {
            return Err(ImageError::cancelled());
        }
        self.used = self.used.saturating_add(chunk as u64);
        check(
            "the size of all layers, uncompressed,",
            "unpacked_bytes",
            self.used,
            self.limits.unpacked_bytes,
        )?;
        self.limits.check_ratio("the layer's size over its compressed size", layer, compressed)
    }
}

/// Inflates `blob`, hands it to `consume`, and checks that all of it, what `consume` leaves unread
/// included, has the digest `diff_id`; without one, its origin is known by other means.
pub(crate) fn inflate(
    blob: impl Read + Send,
    compressed: u64,
    diff_id: Option<&Digest>,
    budget: &mut Budget<'_>,
    consume: impl FnOnce(&mut Chunks) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let (chunks, queue) = sync_channel(QUEUE);
    let (to_hash, hash_queue) = sync_channel::<Bytes>(QUEUE);
    let actual = thread::scope(|scope| {
        let hasher = named("diff-id").spawn_scoped(scope, move || {
            let mut hash = Sha256::new();
            hash_queue.iter().for_each(|chunk| hash.update(&chunk));
            Digest::sha256(hash.finalize().into())
        });
        let hasher = hasher.map_err(no_thread)?;
        let inflater = named("inflate").spawn_scoped(scope, move || {
            if let Err(error) = pump(blob, compressed, budget, &chunks, &to_hash) {
                // Nobody listens any more if the reader failed first.
                let _ = chunks.send(Err(error));
            }
        });
        inflater.map_err(no_thread)?;
        let mut reader = Chunks { queue, current: Bytes::new() };
        consume(&mut reader)?;
        io::copy(&mut reader, &mut io::sink()).map_err(|error| ImageError::from_read("inflating", error))?;
        drop(reader);
        hasher.join().map_err(|_| ImageError::invalid("hashing failed"))
    })?;
    if let Some(diff_id) = diff_id.filter(|diff_id| actual != **diff_id) {
        return Err(ImageError::invalid(format!(
            "its content has digest {actual}, and the image's config says {diff_id}; build and push the image again"
        )));
    }
    Ok(())
}

fn named(name: &str) -> thread::Builder {
    thread::Builder::new().name(name.to_owned())
}

fn no_thread(error: io::Error) -> ImageError {
    ImageError::host("starting a thread", &error)
}

/// Moves chunks until the end, an error, or nobody is left to take them.
fn pump(
    blob: impl Read + Send,
    compressed: u64,
    budget: &mut Budget<'_>,
    chunks: &SyncSender<io::Result<Bytes>>,
    to_hash: &SyncSender<Bytes>,
) -> io::Result<()> {
    let mut decoder = decoder(blob)?;
    let pool = Pool::new();
    let mut layer = 0u64;
    loop {
        let mut chunk = pool.take();
        chunk.length = fill(&mut decoder, &mut chunk.buffer)?;
        let length = chunk.length;
        if length == 0 {
            return Ok(());
        }
        layer += length as u64;
        budget.spend(length, layer, compressed)?;
        let chunk = Bytes::from_owner(chunk);
        if to_hash.send(chunk.clone()).is_err() || chunks.send(Ok(chunk)).is_err() {
            return Ok(());
        }
    }
}

/// Buffers that go round: one comes back when all who read it are done. Fresh memory for each chunk
/// would have to be cleared by the kernel and again by us.
struct Pool {
    back: Receiver<Vec<u8>>,
    home: SyncSender<Vec<u8>>,
}

impl Pool {
    fn new() -> Self {
        let (home, back) = sync_channel(QUEUE);
        Pool { back, home }
    }

    /// The queues' lengths bound how many buffers there ever are.
    fn take(&self) -> Chunk {
        let buffer = self.back.try_recv().unwrap_or_else(|_| vec![0; CHUNK]);
        Chunk { buffer, length: 0, home: self.home.clone() }
    }
}

/// A buffer of the pool and how much of it is filled.
struct Chunk {
    buffer: Vec<u8>,
    length: usize,
    home: SyncSender<Vec<u8>>,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // Freed if the pool is full or gone.
        let _ = self.home.try_send(std::mem::take(&mut self.buffer));
    }
}

/// Reads until the buffer is full or the input ends.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match reader.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Whether the first bytes of a file are those of a format that [`decoder`] inflates.
pub(crate) fn is_compressed(start: &[u8]) -> bool {
    start.starts_with(&GZIP) || start.starts_with(&ZSTD)
}

/// Picks the decoder by the first bytes. Gzip may have many members and zstd many frames; a zstd
/// window is at most 128 MiB, the library's own bound.
pub(crate) fn decoder<'a>(mut blob: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut magic = [0; 4];
    let length = fill(&mut blob, &mut magic)?;
    if let Some((_, name)) = FOREIGN.iter().find(|(foreign, _)| magic == *foreign) {
        let text = format!("the layer is compressed with {name}; push it with gzip, zstd or nothing");
        return Err(ImageError::invalid(text).into());
    }
    let skippable = magic[0] & 0xf0 == 0x50 && magic[1..] == ZSTD_SKIPPABLE;
    let blob = BufReader::with_capacity(CHUNK, Read::take(Cursor::new(magic), length as u64).chain(blob));
    Ok(if magic.starts_with(&GZIP) {
        Box::new(flate2::bufread::MultiGzDecoder::new(blob))
    } else if magic == ZSTD || skippable {
        Box::new(zstd::stream::read::Decoder::with_buffer(blob)?)
    } else {
        Box::new(blob)
    })
}

/// The inflated layer, as it arrives.
pub(crate) struct Chunks {
    queue: Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.is_empty() {
            // A sender that is gone has said all.
            if let Ok(chunk) = self.queue.recv() {
                self.current = chunk?;
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, count: usize) {
        self.current.advance(count);
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}
