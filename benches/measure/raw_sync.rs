//! What the disk alone takes: one record written and synced at a time, at a fixed rate, into a file that was filled with
//! zeros before: so that a sync writes the record and nothing of the file system's.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

/// Latencies in microseconds, from when each append was due.
pub fn at_rate(dir: &Path, per_second: u32, time: Duration) -> io::Result<Histogram<u64>> {
    const RECORD: [u8; 300] = [b'r'; 300];
    let file = File::create(dir.join("raw-sync"))?;
    let count = (time.as_secs_f64() * f64::from(per_second)) as u32;
    file.write_all_at(&vec![0; RECORD.len() * count as usize], 0)?;
    file.sync_all()?;
    let mut latency = Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are valid");
    let start = Instant::now();
    for number in 0..count {
        let due = start + Duration::from_secs(1) * number / per_second;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        file.write_all_at(&RECORD, u64::from(number) * RECORD.len() as u64)?;
        file.sync_data()?;
        latency.saturating_record(due.elapsed().as_micros() as u64);
    }
    Ok(latency)
}
