//! Blobs without a registry: who makes them arrive, who reads them, and what is kept.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};

use super::{Arrival, BlobReader, BlobSink, Blobs, Turn, parse_name, remove};
use crate::image::manifest::Descriptor;
use crate::image::{Digest, ImageError};

/// What only a real defect takes.
const LIMIT: Duration = Duration::from_secs(60);
const BYTES: &[u8] = b"the bytes of a layer";

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[test]
fn only_names_that_blobs_have_are_taken_for_blobs() {
    let parsed = |name: &str| parse_name(name).map(|(digest, partial)| (digest.to_string(), partial));
    assert_eq!(parsed(&format!("sha256-{HEX}")), Some((format!("sha256:{HEX}"), false)));
    assert_eq!(parsed(&format!("sha256-{HEX}.ab.partial")), Some((format!("sha256:{HEX}"), true)));
    for other in ["", "lost+found", "sha256-", &format!("sha256-{HEX}.partial"), &format!("sha256-{HEX}x")] {
        assert_eq!(parsed(other), None, "{other}");
    }
}

fn descriptor(bytes: &[u8]) -> Descriptor {
    let digest = Digest::sha256(Sha256::digest(bytes).into());
    Descriptor { media_type: String::new(), digest, size: bytes.len() as u64 }
}

/// Keeps as many bytes.
fn blobs(folder: &Path, capacity: usize) -> Arc<Blobs> {
    Blobs::new(folder.to_owned(), capacity as u64)
}

fn open(blobs: &Arc<Blobs>) -> (Arrival, BlobReader) {
    blobs.open("a.lan", &descriptor(BYTES))
}

async fn turn(arrival: &Arrival) -> Result<Turn, ImageError> {
    tokio::time::timeout(LIMIT, arrival.turn(|_| ())).await.expect("somebody's turn it is")
}

/// The sink, which this one's turn it is to fill.
async fn sink(arrival: &Arrival) -> BlobSink {
    match turn(arrival).await.unwrap() {
        Turn::Download(sink) => sink,
        Turn::Done => panic!("nothing is there"),
    }
}

async fn is_done(arrival: &Arrival) -> bool {
    matches!(turn(arrival).await, Ok(Turn::Done))
}

async fn fill(mut sink: BlobSink, bytes: &'static [u8]) -> Result<(), ImageError> {
    assert!(sink.write(bytes.into()).await);
    sink.finish().await
}

fn content(mut reader: BlobReader) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map(|_| bytes).map_err(|error| error.to_string())
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// So many blobs are known to be in use.
fn running(blobs: &Blobs) -> usize {
    blobs.running.with(|running| running.len())
}

#[tokio::test]
async fn one_downloads_and_all_read() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = blobs(folder.path(), 0);
    let ((first, first_reader), (second, second_reader)) = (open(&blobs), open(&blobs));
    let sink = sink(&first).await;
    assert_eq!(names(folder.path()), [""; 0], "nothing is to be kept, so it has no name");
    let (waits, filled) = tokio::join!(is_done(&second), fill(sink, BYTES));
    filled.unwrap();
    assert!(waits, "whoever waited has nothing to do");
    // Nor has who comes while it is in use.
    let (third, third_reader) = open(&blobs);
    assert!(is_done(&third).await);
    for reader in [first_reader, second_reader, third_reader] {
        assert_eq!(content(reader).as_deref(), Ok(BYTES));
    }
    drop((first, second, third));
    assert_eq!((running(&blobs), names(folder.path())), (0, Vec::new()));
}

#[tokio::test]
async fn what_fails_all_and_what_fails_one() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = blobs(folder.path(), 0);
    for (error, of_all) in [
        (ImageError::unavailable("it"), true),
        (ImageError::digest("it"), true),
        (ImageError::not_found("it"), false),
        (ImageError::unauthorized("it"), false),
        (ImageError::invalid("it"), false),
    ] {
        let ((first, reader), (second, _other)) = (open(&blobs), open(&blobs));
        sink(&first).await.give_up(&error);
        match turn(&second).await {
            Err(told) => {
                assert!(of_all && told.reason == error.reason, "{error}: {told}");
                assert!(content(reader).is_err(), "{error}");
                // The next pull starts anew, and keeps its blob when the failed one goes.
                let (third, _reader) = open(&blobs);
                let sink = sink(&third).await;
                drop((first, second, _other));
                assert_eq!(running(&blobs), 1, "{error}");
                drop(sink);
            }
            Ok(Turn::Download(_)) => assert!(!of_all, "{error}"),
            Ok(Turn::Done) => panic!("{error}: nothing came"),
        }
    }
    // The threads that wrote hold theirs until they end.
    let gone = async {
        while running(&blobs) > 0 {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(LIMIT, gone).await.expect("nobody uses any");
}

#[tokio::test]
async fn wrong_bytes_fail_all_and_are_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = blobs(folder.path(), 1000);
    let ((first, reader), (second, _other)) = (open(&blobs), open(&blobs));
    let sink = sink(&first).await;
    let (waits, filled) = tokio::join!(turn(&second), fill(sink, b"THE BYTES OF A LAYER"));
    assert_eq!(filled.unwrap_err().reason, "DigestMismatch");
    assert_eq!(waits.err().unwrap().reason, "DigestMismatch");
    assert!(!first.is_right().await);
    // Its content was there to read; its end is not.
    assert!(content(reader).is_err());
    assert_eq!(names(folder.path()), [""; 0]);
}

#[tokio::test]
async fn readers_fail_when_their_pull_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = blobs(folder.path(), 0);
    let ((first, first_reader), (second, mut second_reader)) = (open(&blobs), open(&blobs));
    let mut sink = sink(&first).await;
    let (told, end) = mpsc::channel();
    let waits = std::thread::spawn(move || {
        let mut reader = first_reader;
        let mut half = [0; 10];
        told.send(reader.read_exact(&mut half).map_err(|error| error.to_string())).unwrap();
        told.send(reader.read_exact(&mut half).map_err(|error| error.to_string())).unwrap();
    });
    assert!(sink.write(BYTES[..10].into()).await);
    assert_eq!(end.recv_timeout(LIMIT).unwrap(), Ok(()));
    // It waits for more, or is about to.
    drop(first);
    assert!(end.recv_timeout(LIMIT).unwrap().is_err());
    waits.join().unwrap();
    // Bytes that are there are not read for nobody.
    drop(second);
    assert!(second_reader.read(&mut [0; 1]).is_err());
}

#[tokio::test]
async fn a_kept_layer_is_used_and_one_that_shrinks_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = blobs(folder.path(), BYTES.len());
    let (arrival, _reader) = open(&blobs);
    fill(sink(&arrival).await, BYTES).await.unwrap();
    drop((arrival, _reader));
    let kept = folder.path().join(descriptor(BYTES).digest.folder());
    assert_eq!(fs::read(&kept).unwrap(), BYTES, "it is as long as what may be kept");

    let ((first, first_reader), (second, second_reader)) = (open(&blobs), open(&blobs));
    assert!(is_done(&first).await && is_done(&second).await);
    assert_eq!(content(first_reader).as_deref(), Ok(BYTES));
    fs::File::options().write(true).open(&kept).unwrap().set_len(5).unwrap();
    assert!(content(second_reader).unwrap_err().contains("became shorter"));

    let too_small = self::blobs(folder.path(), BYTES.len() - 1);
    fs::remove_file(&kept).unwrap();
    let (arrival, _reader) = open(&too_small);
    fill(sink(&arrival).await, BYTES).await.unwrap();
    assert_eq!(names(folder.path()), [""; 0]);
}

#[tokio::test]
async fn what_came_before_a_break_is_not_asked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = blobs(folder.path(), 1000);
    let name = {
        let (arrival, _reader) = open(&blobs);
        let mut sink = sink(&arrival).await;
        assert!(sink.write(BYTES[..7].into()).await);
        assert_eq!(sink.finish().await.unwrap_err().reason, "Cancelled");
        names(folder.path()).pop().unwrap()
    };
    for (there, position) in [(7, 7), (BYTES.len(), BYTES.len()), (BYTES.len() + 1, 0)] {
        let mut bytes = BYTES.to_vec();
        bytes.resize(there, 0);
        bytes.truncate(there);
        fs::write(folder.path().join(&name), bytes).unwrap();
        let (arrival, reader) = open(&blobs);
        let mut sink = sink(&arrival).await;
        assert_eq!(sink.position(), position as u64);
        if position < BYTES.len() {
            assert!(sink.write(BYTES[position..].into()).await);
        }
        sink.finish().await.unwrap();
        assert_eq!(content(reader).as_deref(), Ok(BYTES));
        assert_eq!(names(folder.path()), [descriptor(BYTES).digest.folder()]);
        fs::remove_file(folder.path().join(&names(folder.path())[0])).unwrap();
    }
}

#[test]
fn what_goes_and_what_stays() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = blobs(folder.path(), 25);
    // From the longest unused, ten bytes each; the last is in use.
    let digests: Vec<Digest> = (0..4u8).map(|number| descriptor(&[number; 10]).digest).collect();
    let paths: Vec<_> = digests.iter().map(|digest| folder.path().join(digest.folder())).collect();
    let make = || {
        for (age, path) in (1..).zip(paths.iter().rev()) {
            fs::write(path, [0; 10]).unwrap();
            let then = SystemTime::now() - Duration::from_secs(age * 1000);
            fs::File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
        }
    };
    let there = || paths.iter().map(|path| path.exists()).collect::<Vec<_>>();
    make();
    assert_eq!(blobs.prune(40).unwrap(), 0);
    assert_eq!(blobs.prune(39).unwrap(), 10);
    assert_eq!(there(), [false, true, true, true]);
    make();
    blobs.tidy(false);
    assert_eq!(there(), [false, false, true, true], "as many as may be kept");
    blobs.make_room(5);
    assert_eq!(there(), [false, false, false, true], "one for five bytes");
    make();
    let used = blobs.open("a.lan", &descriptor(&[0; 10]));
    blobs.tidy(true);
    assert_eq!(there(), [true, false, false, false], "a running pull loses none");
    drop(used);
    blobs.tidy(true);
    assert_eq!(there(), [false; 4]);

    // An interrupted one that nobody went on with, and one without a byte, go whatever room there is.
    let partial = |name: &str, bytes: &[u8], hours: u64| {
        let path = folder.path().join(format!("{}.{name}.partial", digests[0].folder()));
        fs::write(&path, bytes).unwrap();
        let then = SystemTime::now() - Duration::from_secs(hours * 3600);
        fs::File::options().write(true).open(&path).unwrap().set_modified(then).unwrap();
        path
    };
    let (stale, fresh, empty) = (partial("a", b"x", 25), partial("b", b"x", 23), partial("c", b"", 0));
    blobs.tidy(false);
    assert!(!stale.exists() && fresh.exists() && !empty.exists());
    // A folder is none of ours, whatever its name is.
    fs::create_dir(&paths[1]).unwrap();
    assert_eq!(blobs.list().unwrap().len(), 1);
    assert!(remove(&paths[1]).is_err() && remove(&paths[2]).is_ok());
}
