//! A disk that has lost sectors: what was in them is lost, and named; all else is read, and the journal goes on.

use std::{
    collections::BTreeSet,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    super::{
        JournalConfig, JournalLog,
        budget::Purpose,
        chain::Chain,
        disk::Disk,
        frame::{FRAMES_START, FoundHeader, Kind, Pair, SegmentHeader},
        reader::Source,
        salvage::UNREADABLE,
        scanner::{Scanner, Step},
        segment::Shape,
        stats::JournalStats,
    },
    DIR, home, lane,
    sim::{SECTOR, SimDisk},
};
use crate::log::{
    Checkpoint, Log,
    conformance::{append, assigned, queue, read, tail},
};

const RECORDS: u64 = 130;
const SHAPE: Shape = Shape { segment_bytes: 32 << 10, first_step: 4 << 10, max_step: 8 << 10, min_free_bytes: 0 };

/// A journal of three segments, and which bytes each record has.
struct Image {
    disk: SimDisk,
    segments: Vec<PathBuf>,
    records: Vec<Placed>,
}

#[derive(Clone, Debug)]
struct Placed {
    seq: u64,
    segment: usize,
    bytes: Range<usize>,
}

fn value(seq: u64) -> Bytes {
    format!("{seq}:{}", "v".repeat((seq as usize * 137) % 1200)).into()
}

fn append_to(chain: &mut Chain) -> u64 {
    let seq = chain.shelf().progress().next_seq;
    let pair = Pair { first: Bytes::new(), second: value(seq) };
    chain.append(&[(Kind::Record, pair)], Purpose::Append).expect("there is room")
}

/// The records that are read by a process that opens the journal, twice; then one more is appended. Answers them, and
/// the counters.
fn survey(disk: &SimDisk) -> (BTreeSet<u64>, Arc<JournalStats>) {
    let stats = Arc::new(JournalStats::default());
    let mut chain = Chain::open(home(disk, SHAPE, &stats), true).expect("it opens, whatever was lost");
    let watermark = chain.checkpoint().map(|checkpoint| checkpoint.watermark);
    assert_eq!(watermark, Some(1), "no checkpoint is lost with one sector");
    let mut records = BTreeSet::new();
    for _ in 0..2 {
        let mut source = Source::new(chain.home().clone(), chain.shelf().clone(), 0);
        let entries = source.read(usize::MAX).expect("it is read");
        entries.iter().for_each(|entry| assert_eq!(entry.record.value, value(entry.offset)));
        records = entries.iter().map(|entry| entry.offset).collect();
    }
    append_to(&mut chain);
    (records, stats)
}

impl Image {
    fn new() -> Self {
        let disk = SimDisk::new();
        let mut chain = Chain::new(home(&disk, SHAPE, &Arc::default()));
        for seq in 0..RECORDS {
            assert_eq!(append_to(&mut chain), seq);
            if seq % 20 == 3 {
                let state = Bytes::from_static(b"state");
                chain.commit(&Checkpoint { watermark: 1, state }).expect("there is room");
            }
        }
        let segments: Vec<PathBuf> =
            chain.shelf().newest_first().iter().rev().map(|segment| segment.path.clone()).collect();
        assert_eq!(segments.len(), 3);
        let mut records = Vec::new();
        for (segment, path) in segments.iter().enumerate() {
            let content = disk.content(path);
            let FoundHeader::Valid(header) = SegmentHeader::decode(&content) else {
                panic!("segment {segment} has no header");
            };
            let file = disk.open(path).expect("it is there");
            let mut scanner = Scanner::new(file, header.seed(), FRAMES_START, content.len() as u64);
            let mut from = scanner.at() as usize;
            while let Step::Frame(frame) = scanner.step().expect("it is read") {
                let bytes = from..scanner.at() as usize;
                from = bytes.end;
                if frame.kind == Kind::Record {
                    records.push(Placed { seq: frame.seq, segment, bytes });
                }
            }
        }
        Self { disk, segments, records }
    }

    fn all(&self) -> BTreeSet<u64> {
        (0..RECORDS).collect()
    }

    /// The records that have bytes in that sector; all of the segment where its header is there.
    fn in_sector(&self, segment: usize, sector: usize) -> BTreeSet<u64> {
        let bytes = sector * SECTOR..(sector + 1) * SECTOR;
        let hit = |record: &&Placed| {
            let overlaps = record.bytes.start < bytes.end && bytes.start < record.bytes.end;
            record.segment == segment && (sector == 0 || overlaps)
        };
        self.records.iter().filter(hit).map(|record| record.seq).collect()
    }

    fn file_name(&self, segment: usize) -> String {
        self.segments[segment].file_name().expect("it has a name").to_string_lossy().into_owned()
    }
}

#[test]
fn lost_sector_loses_what_was_in_it() {
    let image = Image::new();
    let newest = image.segments.len() - 1;
    for (segment, path) in image.segments.iter().enumerate() {
        for sector in 0..image.disk.content(path).len().div_ceil(SECTOR) {
            let what = format!("sector {sector} of segment {segment}");
            let disk = image.disk.copy();
            disk.lose_sector(path, sector * SECTOR, None);
            let lost = image.in_sector(segment, sector);
            let (found, stats) = survey(&disk);
            assert_eq!(found, &image.all() - &lost, "{what}");
            // Nobody can know whether the last records were acknowledged, nor what an unreadable newest segment held.
            if !(segment == newest && (sector == 0 || lost.contains(&(RECORDS - 1)))) {
                // Record 0 was finished, and is not missed with its segment.
                let finished = usize::from((segment, sector) == (0, 0));
                assert_eq!(stats.damaged_records(), (lost.len() - finished) as u64, "{what}");
            }
            assert!((1..40).contains(&disk.pauses()), "{what}: {} pauses", disk.pauses());
            // The next process finds the same, and what was appended since, under a number of its own.
            let (again, _) = survey(&disk);
            let added: Vec<u64> = again.difference(&found).copied().collect();
            assert!(matches!(added[..], [added] if added >= RECORDS), "{what}: {added:?} were added");
            assert_eq!(again.len(), found.len() + 1, "{what}");
        }
    }
}

#[test]
fn lost_sector_is_named_once_with_its_records() {
    let image = Image::new();
    let disk = image.disk.copy();
    disk.lose_sector(&image.segments[1], 3 * SECTOR, None);
    let lines = super::log_lines(|| drop(survey(&disk)));
    let lost = image.in_sector(1, 3);
    let (first, last) = (lost.first().expect("there are some"), lost.last().expect("there are some"));
    let file = image.file_name(1);
    let expected = [
        format!("cannot read bytes {} to {} of {file}", 3 * SECTOR, 4 * SECTOR),
        format!("lost records {first} to {last}: bytes"),
    ];
    for expected in expected {
        let found = lines.iter().filter(|line| line.contains("WARN") && line.contains(&expected)).count();
        assert_eq!(found, 1, "{expected}: {lines:?}");
    }
}

#[test]
fn bytes_around_a_lost_sector_are_kept_aside() {
    let image = Image::new();
    let disk = image.disk.copy();
    let cut = |record: &&Placed| record.segment == 1 && record.bytes.start / SECTOR != record.bytes.end / SECTOR;
    let record = image.records.iter().find(cut).expect("a record lies across sectors");
    disk.lose_sector(&image.segments[1], record.bytes.end, None);
    let content = disk.content(&image.segments[1]);
    survey(&disk);
    let aside = disk.content(&image.segments[1].with_extension("bad"));
    let lost = record.bytes.end / SECTOR * SECTOR;
    assert_eq!(aside[record.bytes.start..lost], content[record.bytes.start..lost]);
    assert!(aside[lost..lost + SECTOR].iter().all(|byte| *byte == UNREADABLE));
}

#[test]
fn failure_that_passes_loses_nothing() {
    let image = Image::new();
    for (segment, path) in image.segments.iter().enumerate() {
        let disk = image.disk.copy();
        for sector in 0..disk.content(path).len().div_ceil(SECTOR) {
            disk.lose_sector(path, sector * SECTOR, Some(3));
        }
        let (found, stats) = survey(&disk);
        assert_eq!(found, image.all(), "segment {segment}");
        assert_eq!((stats.damaged_records(), stats.torn_tails()), (0, 0));
    }
}

/// A row of lost sectors is waited for once.
#[test]
fn lost_segment_is_passed_over_in_bounded_time() {
    let image = Image::new();
    let disk = image.disk.copy();
    for sector in 0..disk.content(&image.segments[1]).len().div_ceil(SECTOR) {
        disk.lose_sector(&image.segments[1], sector * SECTOR, None);
    }
    let (found, _) = survey(&disk);
    let of_it: BTreeSet<u64> = image.in_sector(1, 0);
    assert_eq!(found, &image.all() - &of_it);
    assert!(disk.pauses() < 10, "{} pauses", disk.pauses());
}

#[test]
fn lost_identity_is_known_from_the_segments() {
    let image = Image::new();
    let disk = image.disk.copy();
    disk.lose_sector(&Path::new(DIR).join("META"), 0, None);
    assert_eq!(survey(&disk).0, image.all());
}

#[tokio::test]
async fn consumer_goes_on_behind_a_lost_sector() {
    let disk = SimDisk::new();
    let config = JournalConfig { min_free_bytes: 0, ..JournalConfig::new("/data") };
    let log = JournalLog::open(config, Arc::new(disk.clone())).expect("it opens");
    let queue = queue("normal");
    let large = "v".repeat(1000);
    for _ in 0..100 {
        append(&log, &queue, &large).await;
    }
    let table = log.table("things").expect("it is made");
    for n in 0..100 {
        table.put(format!("k{n}").into(), large.clone().into()).await.expect("there is room");
    }
    for dir in ["queues/default/normal", "tables/things"] {
        let path = Path::new("/data").join(dir).join("0000000001-00000000000000000000.seg");
        disk.lose_sector(&path, 5 * SECTOR, None);
    }
    let mut consumer = assigned(&log, &queue).await;
    let found = read(&mut consumer, 95).await;
    let lost: Vec<u64> = (0..100).filter(|seq| found.iter().all(|entry| entry.offset != *seq)).collect();
    assert!((4..=5).contains(&lost.len()) && found.len() + lost.len() == 100, "{lost:?} were lost");
    assert_eq!(log.stats().damaged_records(), lost.len() as u64);
    let last = append(&log, &queue, "the next").await;
    assert_eq!(read(&mut consumer, 1).await[0].offset, last);
    assert_eq!(tail(&log, &queue, usize::MAX, usize::MAX).len(), found.len() + 1);
    let (send, scanned) = std::sync::mpsc::channel();
    table.scan(Box::new(move |entry| send.send(entry.position).is_ok())).await.expect("it is read");
    let scanned: BTreeSet<u64> = scanned.into_iter().collect();
    assert!((95..=96).contains(&scanned.len()), "{scanned:?}");
    let gone = (0..100).find(|position| !scanned.contains(position)).expect("some are lost");
    assert_eq!(table.read(gone).await, Ok(None));
    append(&log, &lane("low"), "another queue").await;
}
