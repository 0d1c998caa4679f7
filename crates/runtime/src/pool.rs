//! Command buffers for reuse: one box and one operator call a queued operator, none allocated in steady state.

use acl_abi::{OpCall, OpId};
use device::Command;

/// Buffers kept at most. More were needed only by a burst; they are let go.
const SPARE_MAX: usize = 4096;
/// Bytes of a host buffer that is kept: inline copies are at most [`wire::INLINE_COPY_BYTES_MAX`].
const HOST_BYTES_MAX: usize = wire::INLINE_COPY_BYTES_MAX;

/// Spare buffers.
#[allow(clippy::vec_box, reason = "the device takes and returns boxes; unboxing would allocate for each submission")]
#[derive(Debug, Default)]
pub struct Pool {
    operators: Vec<Box<Command>>,
    copies: Vec<Box<Command>>,
    host: Vec<Vec<u8>>,
}

impl Pool {
    /// A command with the contents of `call`; `call` gets a spare call's buffers in exchange.
    pub fn operator(&mut self, call: &mut OpCall) -> Box<Command> {
        let mut command = self.operators.pop().unwrap_or_else(|| Box::new(Command::Op(OpCall::new(OpId(0)))));
        if let Command::Op(spare) = &mut *command {
            std::mem::swap(spare, call);
        }
        command
    }

    /// A copy or fill.
    pub fn copy(&mut self, command: Command) -> Box<Command> {
        match self.copies.pop() {
            Some(mut spare) => {
                *spare = command;
                spare
            }
            None => Box::new(command),
        }
    }

    /// An owned buffer with these bytes.
    pub fn host(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut buffer = self.host.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(bytes);
        buffer
    }

    /// Takes a finished command back.
    pub fn recycle(&mut self, mut command: Box<Command>) {
        match &mut *command {
            Command::Op(call) => {
                call.clear(call.op);
                if self.operators.len() < SPARE_MAX {
                    self.operators.push(command);
                }
            }
            _ => {
                // The host side may keep a session's shared memory mapped: let it go now.
                let done =
                    std::mem::replace(&mut *command, Command::Fill { addr: device::PhysAddr(0), len: 0, value: 0 });
                if let Command::CopyIn { source, .. } = done
                    && let Some(buffer) = source.into_owned()
                    && buffer.capacity() <= HOST_BYTES_MAX
                    && self.host.len() < SPARE_MAX
                {
                    self.host.push(buffer);
                }
                if self.copies.len() < SPARE_MAX {
                    self.copies.push(command);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use acl_abi::{DataType, TensorDesc, ops};

    #[test]
    fn a_recycled_operator_gives_its_buffers_to_the_next() {
        let mut pool = Pool::default();
        let mut call = OpCall::new(ops::aclnnAdd);
        call.push_tensor(Some(TensorDesc::contiguous(0, DataType::F32, &[4])));
        let command = pool.operator(&mut call);
        assert!(matches!(&*command, Command::Op(c) if c.op == ops::aclnnAdd && c.tensors.len() == 1));
        pool.recycle(command);
        let mut next = OpCall::new(ops::aclnnMul);
        let command = pool.operator(&mut next);
        assert!(matches!(&*command, Command::Op(c) if c.op == ops::aclnnMul && c.tensors.is_empty()));
        assert!(
            next.tensors.capacity() > 0 && next.tensors.is_empty(),
            "the caller's scratch got the recycled buffers"
        );
    }
}
