//! Noticing that somebody else removed our rules: a reload of the machine's firewall commonly flushes everything.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{netlink, nft};
use crate::host::Host;

/// The multicast group of nftables' changes, as a bit.
const NFTABLES_GROUP: u32 = 1 << 6;

/// Hands a socket to tokio.
#[allow(unsafe_code)]
fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned, so it stays open and the same for as long as the `AsyncFd` has it.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}

/// Says when a table is gone.
pub struct TableWatch {
    fd: AsyncFd<OwnedFd>,
    host: Host,
    table: &'static str,
}

impl TableWatch {
    pub fn open(host: &Host, table: &'static str) -> io::Result<Self> {
        let open = || -> io::Result<OwnedFd> {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let fd = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                flags,
                SockProtocol::NetlinkNetFilter,
            )?;
            bind(fd.as_raw_fd(), &NetlinkAddr::new(0, NFTABLES_GROUP))?;
            Ok(fd)
        };
        let fd = register(host.run(open)??)?;
        Ok(TableWatch {
            fd,
            host: host.clone(),
            table,
        })
    }

    /// Resolves when the table is not there. What we do to it ourselves in one transaction (remove and make anew) is
    /// over by the time it is looked for.
    pub async fn gone(&self) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let mut ready = self.fd.readable().await?;
            let mut removed = false;
            loop {
                match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    Ok(length) => {
                        removed |= netlink::kinds(buffer.get(..length).unwrap_or_default()).any(nft::is_table_removal)
                    }
                    Err(Errno::EAGAIN) => break,
                    // More happened than fits the buffer: it may have been among it.
                    Err(Errno::ENOBUFS) => removed = true,
                    Err(Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            ready.clear_ready();
            drop(ready);
            if removed {
                let (host, table) = (self.host.clone(), self.table);
                let looked = tokio::task::spawn_blocking(move || host.run(|| nft::table_exists(table)));
                if !looked.await.map_err(io::Error::other)??? {
                    return Ok(());
                }
            }
        }
    }
}
