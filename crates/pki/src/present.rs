//! What is used now of something that is replaced while others use it.

use std::sync::Arc;

use tokio::sync::watch;

/// A place for one value. Clones are the same place.
#[derive(Debug)]
pub struct Present<T>(watch::Sender<Arc<T>>);

impl<T> Clone for Present<T> {
    fn clone(&self) -> Self {
        Present(self.0.clone())
    }
}

impl<T> Present<T> {
    pub fn new(value: impl Into<Arc<T>>) -> Self {
        Present(watch::Sender::new(value.into()))
    }
    /// What is there now.
    pub fn get(&self) -> Arc<T> {
        self.0.borrow().clone()
    }
    pub fn set(&self, value: impl Into<Arc<T>>) {
        self.0.send_replace(value.into());
    }
    /// Tells of every value that comes after the one that is there now.
    pub fn follow(&self) -> watch::Receiver<Arc<T>> {
        self.0.subscribe()
    }
}

impl<T: PartialEq> Present<T> {
    /// Sets what is new; whether it was.
    pub fn set_if_new(&self, value: T) -> bool {
        self.0.send_if_modified(|have| {
            let new = **have != value;
            if new {
                *have = Arc::new(value);
            }
            new
        })
    }
}

impl<T> From<Arc<T>> for Present<T> {
    fn from(value: Arc<T>) -> Self {
        Present::new(value)
    }
}

impl From<String> for Present<String> {
    fn from(value: String) -> Self {
        Present::new(value)
    }
}

impl From<&str> for Present<String> {
    fn from(value: &str) -> Self {
        Present::new(value.to_owned())
    }
}
