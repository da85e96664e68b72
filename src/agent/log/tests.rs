use super::*;

struct Fixture(tempfile::TempDir);

impl Fixture {
    fn new() -> Self {
        Fixture(tempfile::tempdir().unwrap())
    }

    fn open(&self, boot_id: &str) -> Writer {
        let place = Place { path: self.0.path().join("log"), limit: 100 };
        Writer::open_blocking(place, boot_id.into()).unwrap()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.path().join(name)).unwrap()
    }
}

fn data(text: &str) -> Chunk {
    Chunk::Data(Bytes::copy_from_slice(text.as_bytes()))
}

#[test]
fn a_writer_goes_on_where_the_file_ends() {
    let fixture = Fixture::new();
    let mut writer = fixture.open("a");
    writer.write(&mut Chunk::From(0)).unwrap();
    writer.write(&mut data("hello ")).unwrap();
    drop(writer);
    let mut writer = fixture.open("a");
    assert_eq!(writer.next, 6);
    writer.write(&mut data("world")).unwrap();
    drop(writer);
    assert_eq!(fixture.open("a").next, 11);
    assert_eq!(fixture.read("log"), "hello world");
}

#[test]
fn a_new_boot_starts_anew_behind_the_old_output() {
    let fixture = Fixture::new();
    fixture.open("a").write(&mut data("old\n")).unwrap();
    let mut writer = fixture.open("b");
    assert_eq!(writer.next, 0);
    writer.write(&mut data("new\n")).unwrap();
    assert_eq!(fixture.open("b").next, 4);
    assert_eq!(fixture.read("log"), "old\nnew\n");
}

#[test]
fn a_gap_is_noted_and_not_counted() {
    let fixture = Fixture::new();
    let mut writer = fixture.open("a");
    writer.write(&mut data("one\n")).unwrap();
    writer.write(&mut Chunk::From(1000)).unwrap();
    writer.write(&mut data("two\n")).unwrap();
    assert_eq!(fixture.open("a").next, 1004);
    assert_eq!(fixture.read("log"), "one\n\n[vmlet: 996 bytes of output were lost here]\ntwo\n");
}

#[test]
fn a_full_log_is_rotated_and_the_count_goes_on() {
    let fixture = Fixture::new();
    let mut writer = fixture.open("a");
    for line in 0..30 {
        writer.write(&mut data(&format!("line {line:03}\n"))).unwrap();
    }
    assert_eq!(fixture.open("a").next, 270);
    assert_eq!(fixture.read("log").len() + fixture.read("log.1").len(), 9 * (11 + 8));
    assert!(fixture.read("log").ends_with("line 029\n"));
}

#[test]
fn a_kill_in_the_middle_of_a_rotation_loses_nothing() {
    let fixture = Fixture::new();
    fixture.open("a").write(&mut data("before\n")).unwrap();
    fs::rename(fixture.0.path().join("log"), fixture.0.path().join("log.1")).unwrap();
    assert_eq!(fixture.open("a").next, 7);
}

#[test]
fn a_broken_anchor_is_a_new_start() {
    let fixture = Fixture::new();
    fixture.open("a").write(&mut data("x")).unwrap();
    fs::write(fixture.0.path().join("log.anchor"), "{").unwrap();
    assert_eq!(fixture.open("a").next, 0);
}
