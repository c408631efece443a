//! The damage matrix: one thing is broken in a journal of a few segments, and then exactly what was in the broken
//! place is lost, and named; all else is read; the journal goes on; and opening it again finds the same.

use std::{collections::BTreeSet, ops::Range, path::PathBuf, sync::Arc};

use bytes::Bytes;

use super::{
    super::{
        budget::Purpose,
        chain::{Chain, WriteError},
        checkpoint,
        disk::Disk,
        frame::{FRAMES_START, FoundHeader, Kind, Pair, SegmentHeader},
        reader::Source,
        recovery::RecoveryError,
        scanner::{Scanner, Step},
        segment::Shape,
        stats::JournalStats,
    },
    DIR, home,
    sim::{Faults, SimDisk},
};
use crate::log::Checkpoint;

const RECORDS: u64 = 40;
const SHAPE: Shape = Shape { segment_bytes: 4096, first_step: 512, max_step: 2048, min_free_bytes: 0 };

/// A journal, and where everything is in it.
struct Image {
    disk: SimDisk,
    /// Oldest first.
    segments: Vec<PathBuf>,
    frames: Vec<Placed>,
}

#[derive(Clone, Debug)]
struct Placed {
    segment: usize,
    bytes: Range<usize>,
    kind: Kind,
    seq: u64,
}

/// What is read from a journal.
#[derive(Debug, PartialEq, Eq)]
struct Survey {
    records: BTreeSet<u64>,
    watermark: u64,
    damaged: u64,
    torn: u64,
}

fn value(seq: u64) -> Bytes {
    // Of several lengths, some longer than a block.
    format!("{seq}:{}", "v".repeat((seq as usize * 37) % 700)).into()
}

fn append(chain: &mut Chain) -> u64 {
    let seq = chain.shelf().progress().next_seq;
    let pair = Pair { first: Bytes::from_static(b"h"), second: value(seq) };
    chain.append(&[(Kind::Record, pair)], Purpose::Append).expect("there is room")
}

fn commit(chain: &mut Chain, watermark: u64) {
    let state = Bytes::from(format!("state {watermark}"));
    chain.commit(&Checkpoint { watermark, state }).expect("there is room");
}

fn open(disk: &SimDisk, stats: &Arc<JournalStats>) -> Chain {
    Chain::open(home(disk, SHAPE, stats), true).expect("it opens, whatever was broken")
}

/// Reads all that is there, checking that it is what was written.
fn survey(disk: &SimDisk) -> Survey {
    let stats = Arc::new(JournalStats::default());
    let chain = open(disk, &stats);
    let mut records = BTreeSet::new();
    // Twice: damage is counted once, however often it is read.
    for _ in 0..2 {
        let entries = Source::new(chain.home().clone(), chain.shelf().clone(), 0).read(usize::MAX).expect("it is read");
        assert!(entries.is_sorted_by(|a, b| a.offset < b.offset));
        for entry in &entries {
            assert_eq!(entry.record.value, value(entry.offset), "record {} is another", entry.offset);
        }
        records = entries.iter().map(|entry| entry.offset).collect();
    }
    let watermark = chain.checkpoint().map_or(0, |checkpoint| checkpoint.watermark);
    Survey { records, watermark, damaged: stats.damaged_records(), torn: stats.torn_tails() }
}

/// Opens what is on the disk, and sees that it goes on from there: new records under new numbers, found again.
fn check(disk: &SimDisk) -> Survey {
    let first = survey(disk);
    let mut chain = open(disk, &Arc::default());
    let added = append(&mut chain);
    // Of a file that ends early but cleanly nobody can tell.
    let ends_cleanly = first.torn == 0 && first.damaged == 0;
    assert!(added >= RECORDS || ends_cleanly, "number {added} is used again");
    let mut expected = first.records.clone();
    expected.insert(added);
    let again = survey(disk);
    assert_eq!(again.records, expected, "opened again");
    assert_eq!(again.torn, 0, "what was cut stays cut");
    first
}

impl Image {
    fn new() -> Self {
        let disk = SimDisk::new();
        let stats = Arc::new(JournalStats::default());
        let mut chain = Chain::new(home(&disk, SHAPE, &stats));
        for seq in 0..RECORDS {
            assert_eq!(append(&mut chain), seq);
            if seq % 7 == 3 {
                commit(&mut chain, 1);
            }
        }
        let segments: Vec<PathBuf> =
            chain.shelf().newest_first().iter().rev().map(|segment| segment.path.clone()).collect();
        assert!(segments.len() > 4, "{} segments", segments.len());
        let mut frames = Vec::new();
        for (segment, path) in segments.iter().enumerate() {
            let content = disk.content(path);
            let FoundHeader::Valid(header) = SegmentHeader::decode(&content) else {
                panic!("segment {segment} has no header");
            };
            let file = disk.open(path).expect("it is there");
            let mut scanner = Scanner::new(file, header.seed(), FRAMES_START, content.len() as u64);
            let mut from = scanner.at() as usize;
            while let Step::Frame(frame) = scanner.step().expect("it is read") {
                let to = scanner.at() as usize;
                frames.push(Placed { segment, bytes: from..to, kind: frame.kind, seq: frame.seq });
                from = to;
            }
        }
        Self { disk, segments, frames }
    }

    fn last(&self) -> &Placed {
        self.frames.last().expect("there are frames")
    }

    fn all(&self) -> BTreeSet<u64> {
        (0..RECORDS).collect()
    }

    /// Breaks bytes of a segment, and expects that what was in them is lost, and that alone.
    fn check_damage(&self, segment: usize, bytes: Range<usize>, what: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let disk = self.disk.copy();
        disk.tamper(&self.segments[segment], change);
        let hit = |frame: &&Placed| {
            frame.segment == segment && frame.bytes.start < bytes.end && bytes.start < frame.bytes.end
        };
        let lost: BTreeSet<u64> =
            self.frames.iter().filter(hit).filter(|frame| frame.kind == Kind::Record).map(|frame| frame.seq).collect();
        // Nobody can know whether the last frames were ever acknowledged: they are cut off, as a torn write would be.
        let cut = self.frames.iter().rev().take_while(|frame| hit(frame)).filter(|frame| frame.kind == Kind::Record);
        let cut = cut.map(|frame| frame.seq).collect::<BTreeSet<_>>();
        let found = check(&disk);
        assert_eq!(found.records, &self.all() - &lost, "{what}");
        assert_eq!(found.damaged, (lost.len() - cut.len()) as u64, "{what}");
        assert_eq!(found.watermark, 1, "{what}");
    }
}

#[test]
fn undamaged_journal_is_read_whole() {
    let image = Image::new();
    let expected = Survey { records: image.all(), watermark: 1, damaged: 0, torn: 0 };
    assert_eq!(check(&image.disk), expected);
}

#[test]
fn flipped_bit_loses_one_record() {
    let image = Image::new();
    for frame in &image.frames {
        // A byte of each class: magic, kind, flags, length, number, checksum, payload.
        let mut places: Vec<usize> = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 14, 17, 18, 21].to_vec();
        places.extend([22, frame.bytes.len() - 1]);
        for place in places {
            let at = frame.bytes.start + place;
            for bit in [0, 4, 7] {
                let what = format!("bit {bit} of byte {place} of {frame:?}");
                image.check_damage(frame.segment, at..at + 1, &what, |content| content[at] ^= 1 << bit);
            }
        }
    }
}

#[test]
fn zeroed_block_loses_what_was_in_it() {
    let image = Image::new();
    for (segment, path) in image.segments.iter().enumerate() {
        let len = image.disk.content(path).len();
        for from in (0..len).step_by(128) {
            let range = from..(from + 512).min(len);
            let what = format!("zeros over {range:?} of segment {segment}");
            image.check_damage(segment, range.clone(), &what, |content| content[range].fill(0));
        }
    }
}

#[test]
fn cut_at_any_offset_of_the_last_frames_keeps_all_before() {
    let image = Image::new();
    let [before_last, last] = image.frames.last_chunk().expect("there are two");
    assert_eq!(before_last.segment, last.segment);
    for at in before_last.bytes.start..=last.bytes.end {
        let what = format!("cut at {at}");
        image.check_damage(last.segment, at..usize::MAX, &what, |content| content.truncate(at));
        // The same, but the file keeps its size: the blocks never came.
        image.check_damage(last.segment, at..usize::MAX, &what, |content| content[at..].fill(0));
    }
}

#[test]
fn cut_older_segment_loses_and_names_its_end() {
    let image = Image::new();
    let in_second: Vec<&Placed> = image.frames.iter().filter(|frame| frame.segment == 1).collect();
    let at = in_second[in_second.len() - 2].bytes.start + 5;
    image.check_damage(1, at..usize::MAX, "an older segment is cut", |content| content.truncate(at));
}

#[test]
fn missing_segment_loses_its_records_only() {
    let image = Image::new();
    for segment in 0..image.segments.len() - 1 {
        let disk = image.disk.copy();
        disk.unlink(&image.segments[segment]).expect("it is there");
        let of_it = |frame: &&Placed| frame.segment == segment && frame.kind == Kind::Record;
        let lost: BTreeSet<u64> = image.frames.iter().filter(of_it).map(|frame| frame.seq).collect();
        // Record 0 is below the watermark: it was finished.
        let named = lost.iter().filter(|seq| **seq >= 1).count() as u64;
        let found = check(&disk);
        assert_eq!(found.records, &image.all() - &lost, "segment {segment}");
        assert_eq!(found.damaged, named, "segment {segment}");
    }
}

#[test]
fn segments_under_each_others_names_are_read_in_order() {
    let image = Image::new();
    let disk = image.disk.copy();
    let (one, other) = (&image.segments[1], &image.segments[3]);
    let (content, others) = (disk.content(one), disk.content(other));
    disk.tamper(one, |bytes| *bytes = others);
    disk.tamper(other, |bytes| *bytes = content);
    assert_eq!(check(&disk), Survey { records: image.all(), watermark: 1, damaged: 0, torn: 0 });
}

#[test]
fn repeated_segment_is_left_alone() {
    let image = Image::new();
    for segment in [0, 2, image.segments.len() - 1] {
        let disk = image.disk.copy();
        let content = disk.content(&image.segments[segment]);
        let copy = PathBuf::from(DIR).join("0000009999-00000000000000000000.seg");
        disk.tamper(&copy, |bytes| *bytes = content.clone());
        let expected = Survey { records: image.all(), watermark: 1, damaged: 0, torn: 0 };
        assert_eq!(check(&disk), expected, "segment {segment}");
        assert_eq!(disk.content(&copy), content, "it is left as it was");
    }
}

#[test]
fn foreign_files_are_left_alone() {
    let image = Image::new();
    let disk = image.disk.copy();
    let foreign = Image::new();
    let names = ["notes.txt", "0000000001-00000000000000000000.seg.orig", "0000000099-00000000000000000040.seg"];
    for name in names {
        let content = foreign.disk.content(&foreign.segments[1]);
        disk.tamper(&PathBuf::from(DIR).join(name), |bytes| *bytes = content);
    }
    assert_eq!(check(&disk), Survey { records: image.all(), watermark: 1, damaged: 0, torn: 0 });
    names.iter().for_each(|name| assert!(!disk.content(&PathBuf::from(DIR).join(name)).is_empty()));
}

#[test]
fn lost_header_loses_the_segment_and_no_other() {
    let image = Image::new();
    let newest = image.segments.len() - 1;
    for segment in [1, newest] {
        let disk = image.disk.copy();
        disk.tamper(&image.segments[segment], |content| {
            content[40] ^= 1;
            content[1024 + 40] ^= 1;
        });
        let of_it = |frame: &&Placed| frame.segment == segment && frame.kind == Kind::Record;
        let lost: BTreeSet<u64> = image.frames.iter().filter(of_it).map(|frame| frame.seq).collect();
        let found = check(&disk);
        assert_eq!(found.records, &image.all() - &lost, "segment {segment}");
        assert_eq!(found.watermark, 1, "segment {segment}");
    }
}

#[test]
fn garbled_or_missing_meta_changes_nothing() {
    let image = Image::new();
    let meta = PathBuf::from(DIR).join("META");
    let expected = Survey { records: image.all(), watermark: 1, damaged: 0, torn: 0 };
    let disk = image.disk.copy();
    disk.tamper(&meta, |content| content.fill(0x5a));
    assert_eq!(check(&disk), expected);
    let disk = image.disk.copy();
    disk.unlink(&meta).expect("it is there");
    assert_eq!(check(&disk), expected);
}

#[test]
fn garbled_checkpoints_fall_back_to_the_one_before() {
    let image = Image::new();
    let disk = image.disk.copy();
    let mut chain = open(&disk, &Arc::default());
    for watermark in [2, 3] {
        append(&mut chain);
        commit(&mut chain, watermark);
    }
    let newest = chain.shelf().newest_first()[0].path.clone();
    let state = |watermark: u64| format!("state {watermark}").into_bytes();
    let garble = |watermark: u64| {
        disk.tamper(&newest, |content| {
            let sought = state(watermark);
            let places: Vec<usize> = (0..content.len()).filter(|at| content[*at..].starts_with(&sought)).collect();
            places.into_iter().for_each(|at| content[at] ^= 1);
        });
    };
    let watermark = || open(&disk, &Arc::default()).checkpoint().map_or(0, |checkpoint| checkpoint.watermark);
    assert_eq!(watermark(), 3);
    garble(3);
    assert_eq!(watermark(), 2);
    garble(2);
    assert_eq!(watermark(), 1, "the copy at the segment's head");
    garble(1);
    assert_eq!(watermark(), 1, "the one in the segment before");
}

/// Whoever wrote it, no journal did: what had no number yet was not finished.
#[test]
fn checkpoint_ahead_of_its_log_is_passed_over() {
    let image = Image::new();
    let disk = image.disk.copy();
    let last = image.last();
    disk.tamper(&image.segments[last.segment], |content| {
        let FoundHeader::Valid(header) = SegmentHeader::decode(content) else { panic!("the header is damaged") };
        let ahead = Checkpoint { watermark: RECORDS + 1, state: Bytes::from_static(b"ahead") };
        let mut frame = Vec::new();
        checkpoint::encode(&mut frame, header.seed(), header.log_id, RECORDS, &ahead);
        content.truncate(last.bytes.end);
        content.extend(frame);
    });
    assert_eq!(check(&disk), Survey { records: image.all(), watermark: 1, damaged: 0, torn: 0 });
}

#[test]
fn identity_is_the_same_at_each_try_to_make_it() {
    let disk = SimDisk::new();
    let mut chain = Chain::new(home(&disk, SHAPE, &Arc::default()));
    let identity = || SegmentHeader::decode(&disk.content(&PathBuf::from(DIR).join("META")));
    // Room for both copies, but not for all of the file.
    disk.set_faults(Faults { room: Some(1500), ..Faults::default() });
    let item = (Kind::Record, Pair { first: Bytes::new(), second: value(0) });
    assert!(matches!(chain.append(std::slice::from_ref(&item), Purpose::Append), Err(WriteError::Full)));
    let first = identity();
    assert!(matches!(first, FoundHeader::Valid(_)));
    disk.set_faults(Faults::default());
    chain.append(&[item], Purpose::Append).expect("there is room");
    assert_eq!(identity(), first);
}

#[test]
fn nothing_is_made_after_a_failed_sync() {
    let disk = SimDisk::new();
    let mut chain = Chain::new(home(&disk, SHAPE, &Arc::default()));
    disk.set_faults(Faults { sync_fails: true, ..Faults::default() });
    assert!(matches!(chain.commit(&Checkpoint::default()), Err(WriteError::Poisoned(_))));
    disk.set_faults(Faults { changes_left: Some(100), ..Faults::default() });
    assert!(matches!(chain.commit(&Checkpoint::default()), Err(WriteError::Refused(_))));
    let item = (Kind::Record, Pair { first: Bytes::new(), second: value(0) });
    assert!(matches!(chain.append(&[item], Purpose::Append), Err(WriteError::Refused(_))));
    assert_eq!(disk.changes_left(), Some(100));
}

#[test]
fn later_format_is_refused_and_left_alone() {
    let image = Image::new();
    let disk = image.disk.copy();
    let path = &image.segments[2];
    disk.tamper(path, |content| {
        content[8] = 2;
        let crc = crc32c::crc32c(&content[..64]).to_le_bytes();
        content[64..68].copy_from_slice(&crc);
    });
    let before = disk.content(path);
    let refused = Chain::open(home(&disk, SHAPE, &Arc::default()), true);
    assert!(matches!(refused, Err(RecoveryError::NewerFormat { version: 2, .. })));
    assert_eq!(disk.content(path), before);
}

#[test]
fn damaged_bytes_are_kept_aside() {
    let image = Image::new();
    let frame = image.frames.iter().find(|frame| frame.segment == 1 && frame.kind == Kind::Record).expect("one");
    let disk = image.disk.copy();
    disk.tamper(&image.segments[1], |content| content[frame.bytes.start + 30] ^= 1);
    survey(&disk);
    let aside = disk.content(&image.segments[1].with_extension("bad"));
    assert_eq!(aside[frame.bytes.clone()], disk.content(&image.segments[1])[frame.bytes.clone()]);
}

#[test]
fn loss_is_named_in_one_line() {
    let image = Image::new();
    let frame = image.frames.iter().find(|frame| frame.segment == 1 && frame.kind == Kind::Record).expect("one");
    let disk = image.disk.copy();
    disk.tamper(&image.segments[1], |content| content[frame.bytes.start + 30] ^= 1);
    let lines = super::log_lines(|| drop(survey(&disk)));
    let lines: Vec<&String> = lines.iter().filter(|line| line.contains("lost")).collect();
    let file = image.segments[1].file_name().expect("it has a name").to_string_lossy();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let (seq, Range { start, end }) = (frame.seq, &frame.bytes);
    let expected = format!("lost records {seq} to {seq}: bytes {start} to {end} of {file} are damaged");
    assert!(lines[0].contains("WARN") && lines[0].contains(&expected), "{lines:?}");
}

#[test]
fn last_frame_damaged_is_cut_and_said() {
    let image = Image::new();
    let disk = image.disk.copy();
    let last = image.last().clone();
    disk.tamper(&image.segments[last.segment], |content| content[last.bytes.start + 23] ^= 1);
    let lines = super::log_lines(|| {
        let found = survey(&disk);
        assert_eq!((found.damaged, found.torn), (0, 1));
    });
    assert!(lines.iter().any(|line| line.contains(&format!("records from {} on", last.seq))), "{lines:?}");
}

#[test]
fn numbers_skipped_at_the_head_of_a_segment_are_no_loss() {
    let image = Image::new();
    let disk = image.disk.copy();
    let mut chain = open(&disk, &Arc::default());
    while chain.shelf().newest_first().len() == image.segments.len() {
        append(&mut chain);
    }
    // The first write into the newest segment was not finished, and there is no room to say so.
    let newest = chain.shelf().newest_first()[0].path.clone();
    drop(chain);
    disk.tamper(&newest, |content| {
        content.truncate(FRAMES_START as usize);
        content.extend(b"torn");
    });
    disk.set_faults(Faults { room: Some(0), ..Faults::default() });
    let mut chain = open(&disk, &Arc::default());
    disk.set_faults(Faults::default());
    append(&mut chain);
    assert_eq!(survey(&disk).damaged, 0);
}

#[test]
fn number_of_a_damaged_last_record_is_not_given_again_after_two_restarts() {
    let image = Image::new();
    let last = image.last();
    for changes_left in 0..12 {
        let disk = image.disk.copy();
        disk.tamper(&image.segments[last.segment], |content| content[last.bytes.start + 23] ^= 1);
        // The first start dies somewhere on its way.
        disk.set_faults(Faults { changes_left: Some(changes_left), ..Faults::default() });
        let stats = Arc::new(JournalStats::default());
        drop(Chain::open(home(&disk, SHAPE, &stats), true));
        disk.kill();
        let given = append(&mut open(&disk, &stats));
        assert!(given > last.seq, "{given} was given again after {changes_left} changes");
    }
}
