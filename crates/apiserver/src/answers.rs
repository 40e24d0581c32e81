//! Answers of others, remembered for a while.
//!
//! Equal questions that are asked at once are asked once: the others wait for the first. An answer says itself how long
//! it is good for; failures are not remembered. The memory is bounded: when it is full, what has run out goes, and if
//! that is nothing, all of it.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;

use crate::sync::lock;

/// The digest of a question: tokens are among them, and must not lie about in memory longer than they have to.
pub type Key = [u8; 32];

struct Answer<V> {
    value: V,
    until: Instant,
}

type Cell<V> = Arc<OnceCell<Answer<V>>>;

pub struct Answers<V> {
    cells: Mutex<HashMap<Key, Cell<V>>>,
    most: usize,
}

impl<V: Clone> Answers<V> {
    pub fn new(most: usize) -> Self {
        Answers {
            cells: Mutex::default(),
            most,
        }
    }

    /// The answer that is known, else that of `ask`, good for as long as it says.
    pub async fn get<E>(&self, key: Key, ask: impl Future<Output = Result<(V, Duration), E>>) -> Result<V, E> {
        let cell = self.cell(key);
        let asking = async {
            let (value, good_for) = ask.await?;
            let until = Instant::now() + good_for;
            Ok(Answer { value, until })
        };
        let answer = cell.get_or_try_init(|| asking).await;
        if answer.as_ref().map_or(true, |answer| answer.until <= Instant::now()) {
            // It is not to be remembered, or will be asked for anew.
            let mut cells = lock(&self.cells);
            if cells.get(&key).is_some_and(|known| Arc::ptr_eq(known, &cell)) {
                cells.remove(&key);
            }
        }
        answer.map(|answer| answer.value.clone())
    }

    fn cell(&self, key: Key) -> Cell<V> {
        let now = Instant::now();
        let good = |cell: &Cell<V>| cell.get().is_none_or(|answer| answer.until > now);
        let mut cells = lock(&self.cells);
        if let Some(cell) = cells.get(&key).filter(|cell| good(cell)) {
            return cell.clone();
        }
        if cells.len() >= self.most {
            cells.retain(|_, cell| good(cell));
            if cells.len() >= self.most {
                cells.clear();
            }
        }
        let cell = Cell::default();
        cells.insert(key, cell.clone());
        cell
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn asked_once_and_forgotten_in_time() {
        let answers: Answers<u32> = Answers::new(2);
        let count = AtomicU32::new(0);
        let ask = |good_for: Duration| async move {
            tokio::task::yield_now().await;
            Ok::<_, String>((1, good_for))
        };
        let counted = |key: u8, good_for| {
            let count = &count;
            let asking = async move {
                count.fetch_add(1, Ordering::Relaxed);
                ask(good_for).await
            };
            answers.get([key; 32], asking)
        };
        let long = Duration::from_secs(60);
        let (one, two) = tokio::join!(counted(1, long), counted(1, long));
        assert_eq!((one, two), (Ok(1), Ok(1)));
        assert_eq!(count.load(Ordering::Relaxed), 1);
        let failing = answers.get([2; 32], async { Err("no".to_owned()) }).await;
        assert_eq!(failing, Err("no".to_owned()));
        assert_eq!(counted(2, Duration::ZERO).await, Ok(1));
        assert_eq!(counted(2, Duration::ZERO).await, Ok(1));
        assert_eq!(count.load(Ordering::Relaxed), 3);
        for key in 3..20 {
            assert_eq!(counted(key, long).await, Ok(1));
        }
        assert!(lock(&answers.cells).len() <= 2);
    }
}
