//! The windows of a worker, each under a name that no other window ever has.
//!
//! What is under way for a window may end after its partition was taken away, and after another window has come: whoever
//! comes with a name finds the window that it meant, or none.

use std::ops::{Index, IndexMut};

use super::window::Window;

/// The name of a window: where it is, and how many were there before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WindowId {
    place: u32,
    generation: u32,
}

#[derive(Default)]
pub struct Windows {
    places: Vec<Place>,
}

#[derive(Default)]
struct Place {
    generation: u32,
    window: Option<Window>,
}

impl Windows {
    pub fn insert(&mut self, window: Window) -> WindowId {
        let free = self.places.iter().position(|place| place.window.is_none());
        let number = free.unwrap_or_else(|| {
            self.places.push(Place::default());
            self.places.len() - 1
        });
        let place = &mut self.places[number];
        place.window = Some(window);
        WindowId {
            place: u32::try_from(number).expect("a process has far fewer than 2^32 partitions"),
            generation: place.generation,
        }
    }

    /// Takes a window out; nothing is found under its name any more.
    pub fn remove(&mut self, id: WindowId) -> Option<Window> {
        let place = self.places.get_mut(id.place as usize).filter(|place| place.generation == id.generation)?;
        let window = place.window.take()?;
        // After 2^32 windows it begins anew: nothing is under way for that long.
        place.generation = place.generation.wrapping_add(1);
        Some(window)
    }

    pub fn get(&self, id: WindowId) -> Option<&Window> {
        let place = self.places.get(id.place as usize).filter(|place| place.generation == id.generation)?;
        place.window.as_ref()
    }

    pub fn get_mut(&mut self, id: WindowId) -> Option<&mut Window> {
        let place = self.places.get_mut(id.place as usize).filter(|place| place.generation == id.generation)?;
        place.window.as_mut()
    }

    pub fn contains(&self, id: WindowId) -> bool {
        self.get(id).is_some()
    }

    pub fn iter(&self) -> impl Iterator<Item = (WindowId, &Window)> {
        self.places.iter().enumerate().filter_map(|(number, place)| {
            Some((WindowId { place: number as u32, generation: place.generation }, place.window.as_ref()?))
        })
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (WindowId, &mut Window)> {
        self.places.iter_mut().enumerate().filter_map(|(number, place)| {
            Some((WindowId { place: number as u32, generation: place.generation }, place.window.as_mut()?))
        })
    }

    pub fn into_values(self) -> impl Iterator<Item = Window> {
        self.places.into_iter().filter_map(|place| place.window)
    }

    pub fn values(&self) -> impl Iterator<Item = &Window> {
        self.places.iter().filter_map(|place| place.window.as_ref())
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Window> {
        self.places.iter_mut().filter_map(|place| place.window.as_mut())
    }
}

/// For whoever has just seen that the window is there.
impl Index<WindowId> for Windows {
    type Output = Window;

    fn index(&self, id: WindowId) -> &Window {
        self.get(id).expect("its name was looked up since anything was taken out")
    }
}

impl IndexMut<WindowId> for Windows {
    fn index_mut(&mut self, id: WindowId) -> &mut Window {
        self.get_mut(id).expect("its name was looked up since anything was taken out")
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::{
        consumer::window::Budget,
        log::{Assigned, Entry, Epoch, Lease, Partition, QueueName, ReadError, Reader},
    };

    struct NoReader;

    impl Reader for NoReader {
        fn next(&mut self, _max_bytes: usize) -> BoxFuture<'_, Result<Vec<Entry>, ReadError>> {
            Box::pin(std::future::pending())
        }
    }

    fn window(index: u32) -> Window {
        let partition = Partition { queue: QueueName { target: "default".into(), lane: "normal" }, index };
        let (lease, reader) = (Lease::forever(), Box::new(NoReader));
        let assigned = Assigned { partition, epoch: Epoch(1), checkpoint: None, lease, reader };
        Window::new(assigned, [0; 16], 3072, Budget::new(1 << 20))
    }

    #[test]
    fn name_is_never_that_of_another_window() {
        let mut windows = Windows::default();
        let (first, second) = (windows.insert(window(1)), windows.insert(window(2)));
        let gate = windows[first].gate.clone();
        assert!(gate.is_open() && windows.contains(second));
        assert_eq!(windows.remove(first).map(|window| window.partition.index), Some(1));
        assert!(!gate.is_open(), "nothing is sent for a window that is gone");
        assert!(windows.get(first).is_none() && windows.remove(first).is_none());
        let third = windows.insert(window(3));
        assert!(windows.get(first).is_none() && windows.get_mut(first).is_none());
        assert_eq!(windows[third].partition.index, 3);
        let names: Vec<WindowId> = windows.iter().map(|(name, _)| name).collect();
        assert_eq!(names, [third, second], "it has taken the place");
    }
}
