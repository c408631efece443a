//! Reads a journal from some number on, segment after segment, as far as it is synced. Synchronous: `reader` and
//! `table` run it where reading may take time.

use std::{io, sync::Arc};

use super::{
    audit::{Audit, Verdict},
    frame::{FRAMES_START, Frame},
    scanner::{Scanner, Step},
    segment::{Home, Segment},
    shelf::{Extent, Shelf},
};

pub struct Follower {
    home: Arc<Home>,
    shelf: Arc<Shelf>,
    audit: Audit,
    from_seq: u64,
    place: Option<Place>,
}

struct Place {
    segment: Arc<Segment>,
    /// `None` where the segment cannot be read at all.
    scanner: Option<Scanner>,
}

/// A frame and where it is.
#[derive(Debug)]
pub struct Located {
    pub frame: Frame,
    pub ordinal: u64,
    pub at: u64,
}

impl Follower {
    pub fn new(home: Arc<Home>, shelf: Arc<Shelf>, from_seq: u64) -> Self {
        let audit = Audit::new(home.report.clone());
        Self { home, shelf, audit, from_seq, place: None }
    }

    /// Whether the next read is of what was written a moment ago, and so will not wait for the disk (but for a sector
    /// that was lost in that moment).
    pub fn is_near_end(&self) -> bool {
        const NEAR: u64 = 64 * 1024;
        let Some(Place { segment, scanner: Some(scanner) }) = &self.place else {
            return false;
        };
        matches!(self.shelf.extent(segment), Extent::Growing(end) if end - scanner.at() <= NEAR)
    }

    /// The next frame; `None` when all that is synced has been read. Numbers below the first one asked for may be
    /// among them.
    pub fn next_frame(&mut self) -> io::Result<Option<Located>> {
        loop {
            let Some(place) = &mut self.place else {
                let Some(segment) = self.shelf.holding(self.from_seq) else {
                    return Ok(None);
                };
                self.enter(segment)?;
                continue;
            };
            let step = match &mut place.scanner {
                Some(scanner) => {
                    let at = scanner.at();
                    (at, scanner.step()?)
                }
                None => (0, Step::End),
            };
            match step {
                (at, Step::Frame(frame)) => {
                    if self.audit.frame(&place.segment, &frame) == Verdict::Keep {
                        return Ok(Some(Located { frame, ordinal: place.segment.ordinal, at }));
                    }
                }
                (_, Step::Damage { bytes, .. }) => {
                    if let Some(scanner) = &mut place.scanner {
                        self.home.aside.keep(&*self.home.disk, &place.segment, scanner, &bytes);
                    }
                    self.audit.damage(&place.segment, bytes);
                }
                (_, Step::End) => {
                    if !self.go_on()? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Whether there is more: in this segment, or in the one after it.
    fn go_on(&mut self) -> io::Result<bool> {
        let Some(place) = &mut self.place else {
            return Ok(false);
        };
        // The writer notes where a segment ends before the next one takes over: sealed, it is sealed with that end.
        let extent = self.shelf.extent(&place.segment);
        if let Some(scanner) = &mut place.scanner {
            let end = match extent {
                Extent::Growing(end) => end,
                Extent::Sealed => place.segment.sealed_end.get().copied().unwrap_or(scanner.limit()),
            };
            if end > scanner.limit() {
                scanner.set_limit(end);
                return Ok(true);
            }
            if extent != Extent::Sealed {
                scanner.shrink();
                return Ok(false);
            }
        }
        match self.shelf.after(place.segment.ordinal) {
            Some(next) => self.enter(next).map(|()| true),
            None => Ok(false),
        }
    }

    fn enter(&mut self, segment: Arc<Segment>) -> io::Result<()> {
        let scanner = match (segment.seed, self.home.open(&segment.path)) {
            // Unlinked meanwhile, because all of it is finished; or by somebody else, and then the gap is reported.
            (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => None,
            (_, Err(error)) => return Err(error),
            (None, Ok(file)) => {
                self.audit.enter(&segment, self.shelf.progress().watermark);
                self.audit.damage(&segment, 0..file.size()?);
                self.place = Some(Place { segment, scanner: None });
                return Ok(());
            }
            (Some(seed), Ok(file)) => {
                let limit = match self.shelf.extent(&segment) {
                    Extent::Growing(end) => end,
                    Extent::Sealed => segment.sealed_end.get().copied().map_or_else(|| file.size(), Ok)?,
                };
                Some(Scanner::new(file, seed, FRAMES_START, limit))
            }
        };
        self.audit.enter(&segment, self.shelf.progress().watermark);
        self.place = Some(Place { segment, scanner });
        Ok(())
    }
}
