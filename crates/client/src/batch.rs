//! Slow start: many alike writes in batches that double while they succeed, so that an API that refuses
//! (quota, webhook, a broken template) is asked once and not a thousand times.

use std::future::Future;

use futures::future::join_all;

/// Calls `call` for 0..count in batches of `initial`, 2·`initial`, … run concurrently; stops after the first batch with
/// an error. Returns how many succeeded and the first error.
pub async fn slow_start_batch<F, Fut, E>(count: usize, initial: usize, call: F) -> (usize, Option<E>)
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Result<(), E>>,
{
    let (mut next, mut size, mut successes) = (0, initial.max(1), 0);
    while next < count {
        let batch = size.min(count - next);
        let results = join_all((next..next + batch).map(&call)).await;
        let mut first_error = None;
        for result in results {
            match result {
                Ok(()) => successes += 1,
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        if first_error.is_some() {
            return (successes, first_error);
        }
        next += batch;
        // Bounded so that one large set does not take the whole API for itself.
        size = (batch * 2).min(512);
    }
    (successes, None)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn batches_double_and_stop_at_the_first_failing_one() {
        let calls = Cell::new(0);
        let (good, error) = slow_start_batch(100, 1, |i| {
            calls.set(calls.get() + 1);
            async move { if i == 4 { Err(i) } else { Ok(()) } }
        })
        .await;
        // 1 + 2 + 4: the third batch holds call 4.
        assert_eq!((calls.get(), good, error), (7, 6, Some(4)));
        let all = slow_start_batch(10, 1, |_| async { Ok::<_, ()>(()) }).await;
        assert_eq!(all, (10, None));
    }
}
