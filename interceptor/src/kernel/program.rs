//! Programs that aya can't load: those on UNIX sockets. It has no name for where they are attached, nor a way to
//! call a function of the kernel's.
//!
//! Their instructions come out of the same object, with the same maps; they are loaded by bpf(2) itself.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    sync::OnceLock,
};

use aya::{Ebpf, maps::Map};
use aya_obj::{Object, generated::bpf_insn};
use interceptor_abi as abi;

use super::{KernelError, btf::Btf, link};

/// BPF_CGROUP_UNIX_CONNECT and BPF_CGROUP_UNIX_SENDMSG of `enum bpf_attach_type`, since Linux 6.7.
pub(super) const UNIX_CONNECT: u32 = 49;
pub(super) const UNIX_SENDMSG: u32 = 50;

/// Room for what the verifier says.
const LOG_BYTES: usize = 1 << 20;

/// What hooks on UNIX sockets can do on this kernel.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// Why there are no such hooks, where there are none.
    pub(super) absent: Option<&'static str>,
    /// Why they see no names, or not whose they are, where they don't.
    blind: Option<String>,
    pub(super) layout: abi::UnixLayout,
    /// The number of the function by which names are reached; 0 is none.
    cast: u32,
}

/// What this kernel can do, found out once.
pub(super) fn facts() -> &'static Facts {
    static FACTS: OnceLock<Facts> = OnceLock::new();
    FACTS.get_or_init(|| {
        // Any other answer is no reason to go without: loading them says what it is.
        let is_absent = matches!(try_attach_type(), Err(error) if error.raw_os_error() == Some(libc::EINVAL));
        let absent = is_absent
            .then_some("this kernel has no hooks on UNIX sockets (Linux 6.7 and later have)");
        let (layout, cast, blind) = match Btf::of_kernel() {
            Ok(btf) => {
                let (layout, cast) = (layout(&btf), btf.function("bpf_cast_to_kern_ctx"));
                let blind = match (layout.names, layout.owners, cast) {
                    (0, ..) | (.., None) => Some("its BTF has no bpf_cast_to_kern_ctx, or no struct bpf_sock_addr_kern as it is known"),
                    (_, 0, _) => Some("its BTF doesn't tell how the table of UNIX sockets is made: no name is known to be the agent's own"),
                    _ => None,
                };
                (layout, cast.unwrap_or(0), blind.map(str::to_owned))
            }
            Err(error) => (
                abi::UnixLayout::default(),
                0,
                Some(format!("the kernel doesn't describe itself (CONFIG_DEBUG_INFO_BTF): {error}")),
            ),
        };
        Facts {
            absent,
            blind,
            layout,
            cast,
        }
    })
}

fn layout(btf: &Btf) -> abi::UnixLayout {
    let names = || {
        Some(abi::UnixLayout {
            names: 1,
            context_address: btf.offset("bpf_sock_addr_kern", &["uaddr"])?,
            context_length: btf.offset("bpf_sock_addr_kern", &["uaddrlen"])?,
            ..abi::UnixLayout::default()
        })
    };
    let owners = |known: abi::UnixLayout| {
        Some(abi::UnixLayout {
            owners: 1,
            context_socket: btf.offset("bpf_sock_addr_kern", &["sk"])?,
            socket_net: btf.offset("sock", &["__sk_common", "skc_net", "net"])?,
            socket_next: btf.offset("sock", &["__sk_common", "skc_node"])?,
            socket_cgroup: btf.offset("sock", &["sk_cgrp_data", "cgroup"])?,
            socket_name: btf.offset("unix_sock", &["addr"])?,
            net_buckets: btf.offset("net", &["unx", "table", "buckets"])?,
            name_length: btf.offset("unix_address", &["len"])?,
            name_address: btf.offset("unix_address", &["name"])?,
            cgroup_level: btf.offset("cgroup", &["level"])?,
            cgroup_ancestors: btf.offset("cgroup", &["ancestors"])?,
            cgroup_folder: btf.offset("cgroup", &["kn"])?,
            folder_id: btf.offset("kernfs_node", &["id"])?,
            ..known
        })
    };
    let known = names().unwrap_or_default();
    if known.names == 0 {
        return known;
    }
    owners(known).unwrap_or(known)
}

/// Loads one of the object's programs for UNIX sockets, with the maps that aya has made for `loaded`.
pub(super) fn load(
    bytes: &[u8],
    loaded: &Ebpf,
    name: &str,
    attach_type: u32,
) -> Result<OwnedFd, KernelError> {
    let what = format!("loading {name}");
    let bad = |error: String| KernelError::Bpf {
        what: what.clone(),
        error,
    };
    let instructions = instructions(bytes, loaded, name).map_err(|error| bad(error.to_string()))?;
    let attempt = |cast| load_calling(&instructions, name, attach_type, cast);
    let (code, error) = match attempt(facts().cast) {
        Ok(program) => return Ok(program),
        // Names need a look into the kernel's memory, which one that is locked down grants nobody.
        Err((_, error)) if facts().cast != 0 => match attempt(0) {
            Ok(program) => {
                tracing::warn!(
                    error,
                    "the hooks on UNIX sockets see no names and refuse all"
                );
                let _ = REFUSED.set(error);
                return Ok(program);
            }
            Err(refused) => refused,
        },
        Err(refused) => refused,
    };
    Err(match code {
        Some(libc::EPERM) => KernelError::Privilege { what },
        _ => bad(error),
    })
}

/// Loads one of these programs that calls the kernel's function number `cast`, or none (0): it sees no names then.
fn load_calling(
    instructions: &[Instruction],
    name: &str,
    attach_type: u32,
    cast: u32,
) -> Result<OwnedFd, (Option<i32>, String)> {
    let mut instructions = instructions.to_vec();
    call_kernel(&mut instructions, cast);
    load_instructions(&instructions, name, attach_type, &mut []).map_err(|error| {
        // Once more, to hear why.
        let mut log = vec![0; LOG_BYTES];
        let _ = load_instructions(&instructions, name, attach_type, &mut log);
        let why = format!("{error}: {}", last_words(&log));
        (error.raw_os_error(), why)
    })
}

/// Why the kernel refused hooks that see names, where it did.
static REFUSED: OnceLock<String> = OnceLock::new();

/// Why the hooks see no names, or not whose they are, where they don't.
pub(super) fn blind() -> Option<&'static str> {
    let refused = REFUSED.get().map(String::as_str);
    refused.or(facts().blind.as_deref())
}

/// An instruction as the kernel takes it: `struct bpf_insn` of linux/bpf.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Source in the upper half, destination in the lower.
    registers: u8,
    offset: i16,
    number: i32,
}

impl From<&bpf_insn> for Instruction {
    fn from(instruction: &bpf_insn) -> Self {
        Self {
            code: instruction.code,
            registers: instruction.src_reg() << 4 | instruction.dst_reg(),
            offset: instruction.off,
            number: instruction.imm,
        }
    }
}

/// A program's instructions, with its maps in place.
fn instructions(
    bytes: &[u8],
    loaded: &Ebpf,
    name: &str,
) -> Result<Vec<Instruction>, Box<dyn std::error::Error>> {
    let mut object = Object::parse(bytes)?;
    let text: HashSet<usize> = object
        .functions
        .keys()
        .map(|(section, _)| *section)
        .collect();
    let key = object
        .programs
        .get(name)
        .map(aya_obj::Program::function_key)
        .ok_or("it is not in the object")?;
    // The others use maps that this one doesn't.
    let others: HashSet<_> = object
        .programs
        .iter()
        .filter(|(known, _)| *known != name)
        .map(|(_, program)| program.function_key())
        .collect();
    object.programs.retain(|known, _| known == name);
    object.functions.retain(|known, _| !others.contains(known));
    let maps: Vec<(String, RawFd, aya_obj::Map)> = object
        .maps
        .iter()
        .filter_map(|(name, map)| {
            let descriptor = descriptor(loaded.map(name)?)?;
            Some((name.clone(), descriptor, map.clone()))
        })
        .collect();
    let maps = maps.iter().map(|(name, fd, map)| (name.as_str(), *fd, map));
    object.relocate_maps(maps, &text)?;
    object.relocate_calls(&text)?;
    let function = object
        .functions
        .get(&key)
        .ok_or("its instructions are gone")?;
    Ok(function
        .instructions
        .iter()
        .map(Instruction::from)
        .collect())
}

/// Maps of the kinds that these programs use.
fn descriptor(map: &Map) -> Option<RawFd> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::PerCpuArray(data)
        | Map::RingBuf(data) => Some(data.fd().as_fd().as_raw_fd()),
        _ => None,
    }
}

/// Puts the call of the kernel's function number `function` in its place, or, where there is none (0), a zero for
/// its answer.
fn call_kernel(instructions: &mut [Instruction], function: u32) {
    /// BPF_JMP | BPF_CALL.
    const CALL: u8 = 0x85;
    /// BPF_PSEUDO_KFUNC_CALL, as the source.
    const OF_KERNEL: u8 = 2 << 4;
    for instruction in instructions {
        let is_it = instruction.code == CALL
            && instruction.registers == 0
            && instruction.number == abi::CAST_TO_KERNEL_CONTEXT;
        if !is_it {
            continue;
        }
        *instruction = match i32::try_from(function) {
            Ok(function) if function != 0 => Instruction {
                registers: OF_KERNEL,
                number: function,
                ..*instruction
            },
            _ => answer(0),
        };
    }
}

/// Puts a number into register 0.
const fn answer(number: i32) -> Instruction {
    Instruction {
        // BPF_ALU64 | BPF_MOV | BPF_K
        code: 0xB7,
        registers: 0,
        offset: 0,
        number,
    }
}

/// Whether the kernel knows the attach type, by a program that does nothing.
fn try_attach_type() -> io::Result<()> {
    let exit = Instruction {
        // BPF_JMP | BPF_EXIT
        code: 0x95,
        ..answer(0)
    };
    load_instructions(&[answer(1), exit], "agent_trial", UNIX_CONNECT, &mut []).map(drop)
}

/// Loads a program, with the verifier's words in `log` where it has room.
fn load_instructions(
    instructions: &[Instruction],
    name: &str,
    attach_type: u32,
    log: &mut [u8],
) -> io::Result<OwnedFd> {
    const PROG_LOAD: libc::c_long = 5;
    const CGROUP_SOCK_ADDR: u32 = 18;
    /// Others of the object's programs need it, and so do functions of the kernel's.
    const LICENSE: &std::ffi::CStr = c"Dual MIT/GPL";
    /// The part of `union bpf_attr` that BPF_PROG_LOAD reads here.
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_bytes: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        device: u32,
        expected_attach_type: u32,
    }
    let mut short = [0; 16];
    // The last byte ends it.
    for (to, from) in short.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    let load = Load {
        kind: CGROUP_SOCK_ADDR,
        count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: instructions.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_bytes: u32::try_from(log.len()).map_err(io::Error::other)?,
        log: if log.is_empty() {
            0
        } else {
            log.as_mut_ptr() as u64
        },
        kernel_version: 0,
        flags: 0,
        name: short,
        device: 0,
        expected_attach_type: attach_type,
    };
    let program = link::bpf(PROG_LOAD, &load)?;
    let program = i32::try_from(program).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(program) })
}

/// The last lines of what the verifier says.
pub(super) fn last_words(log: &[u8]) -> String {
    const LINES: usize = 6;
    let text = String::from_utf8_lossy(log);
    let lines: Vec<&str> = text.trim_end_matches(['\0', '\n']).lines().collect();
    let last = lines.len().saturating_sub(LINES);
    lines.get(last..).unwrap_or_default().join("; ")
}

/// The hook on connects as a kernel has it that shows no names.
#[cfg(test)]
pub(super) fn load_blind(bytes: &[u8], loaded: &Ebpf) -> OwnedFd {
    let name = "agent_connect_unix";
    let instructions = instructions(bytes, loaded, name).unwrap();
    load_calling(&instructions, name, UNIX_CONNECT, 0).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_call_becomes_the_kernels_own_or_a_zero_and_others_stay() {
        let call = |number, registers| Instruction {
            code: 0x85,
            registers,
            offset: 0,
            number,
        };
        let mut program = [
            call(14, 0),
            call(abi::CAST_TO_KERNEL_CONTEXT, 0),
            call(abi::CAST_TO_KERNEL_CONTEXT, 1 << 4),
            answer(abi::CAST_TO_KERNEL_CONTEXT),
        ];
        let mut without = program;
        call_kernel(&mut program, 4_711);
        assert_eq!(program[1], call(4_711, 2 << 4));
        call_kernel(&mut without, 0);
        assert_eq!(without[1], answer(0));
        for other in [0, 2, 3] {
            assert_eq!(program[other], without[other]);
        }
    }

    #[test]
    fn of_a_long_log_the_end_is_told() {
        assert_eq!(last_words(b""), "");
        assert_eq!(last_words(b"a\nb\n\0\0"), "a; b");
        assert_eq!(last_words(b"1\n2\n3\n4\n5\n6\n7"), "2; 3; 4; 5; 6; 7");
    }
}
