//! From rules to a classic BPF program that the kernel runs at each system call.
//!
//! Layout: architecture check; calls of the x32 table get the default; then one small block per rule,
//! rules with conditions first, then ranges of numbers with one action; then the default. The kernel
//! remembers which calls are allowed whatever their arguments, so a linear program costs little.

use super::{Compare, Rule};

/// One instruction as the kernel lays it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub jump_true: u8,
    pub jump_false: u8,
    pub operand: u32,
}

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

const NUMBER_OFFSET: u32 = 0;
const ARCH_OFFSET: u32 = 4;
const ARGS_OFFSET: u32 = 16;

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
const ARCH: u32 = 0xc000_00f3;
#[cfg(target_endian = "big")]
compile_error!("argument halves are read in little-endian order");

/// Where an instruction of a condition leads.
#[derive(Clone, Copy)]
enum To {
    Next,
    Pass,
    Fail,
}

type Step = (u16, u32, To, To);

fn insn(code: u16, operand: u32) -> Instruction {
    Instruction {
        code,
        jump_true: 0,
        jump_false: 0,
        operand,
    }
}

fn jump(code: u16, operand: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction {
        code,
        jump_true,
        jump_false,
        operand,
    }
}

/// The comparison of one 64-bit argument as steps on its halves.
fn steps(argument: u32, compare: Compare) -> Vec<Step> {
    let low = |v: u64| (v & 0xffff_ffff) as u32;
    let high = |v: u64| (v >> 32) as u32;
    let load = |half: u32| {
        let offset = ARGS_OFFSET + 8 * argument + 4 * half;
        (LOAD, offset, To::Next, To::Next)
    };
    let (load_low, load_high) = (load(0), load(1));
    use To::{Fail, Next, Pass};
    match compare {
        Compare::Equal(v) => vec![
            load_high,
            (EQUAL, high(v), Next, Fail),
            load_low,
            (EQUAL, low(v), Next, Fail),
        ],
        Compare::NotEqual(v) => vec![
            load_high,
            (EQUAL, high(v), Next, Pass),
            load_low,
            (EQUAL, low(v), Fail, Next),
        ],
        Compare::MaskedEqual { mask, value: v } => vec![
            load_high,
            (AND, high(mask), Next, Next),
            (EQUAL, high(v), Next, Fail),
            load_low,
            (AND, low(mask), Next, Next),
            (EQUAL, low(v), Next, Fail),
        ],
        Compare::Greater(v) | Compare::AtLeast(v) => {
            let last = if matches!(compare, Compare::Greater(_)) {
                GREATER
            } else {
                AT_LEAST
            };
            vec![
                load_high,
                (GREATER, high(v), Pass, Next),
                (EQUAL, high(v), Next, Fail),
                load_low,
                (last, low(v), Next, Fail),
            ]
        }
        Compare::Less(v) | Compare::AtMost(v) => {
            let last = if matches!(compare, Compare::Less(_)) {
                AT_LEAST
            } else {
                GREATER
            };
            vec![
                load_high,
                (GREATER, high(v), Fail, Next),
                (EQUAL, high(v), Next, Pass),
                load_low,
                (last, low(v), Fail, Next),
            ]
        }
    }
}

/// The block of a rule with conditions: falls through when it does not apply.
fn conditional(rule: &Rule) -> Vec<Instruction> {
    let blocks: Vec<Vec<Step>> = rule.conditions.iter().map(|c| steps(c.0, c.1)).collect();
    let length: usize = blocks.iter().map(Vec::len).sum();
    // Six arguments of at most six steps: offsets fit a byte with room to spare.
    let byte = |n: usize| u8::try_from(n).unwrap_or(u8::MAX);
    let mut program = vec![insn(LOAD, NUMBER_OFFSET), jump(EQUAL, rule.number, 0, byte(length + 1))];
    let mut position = 0;
    for block in &blocks {
        let end = position + block.len();
        for (code, operand, when_true, when_false) in block {
            position += 1;
            let to = |to: &To| match to {
                To::Next => 0,
                To::Pass => byte(end - position),
                To::Fail => byte(length - position + 1),
            };
            program.push(jump(*code, *operand, to(when_true), to(when_false)));
        }
    }
    program.push(insn(RETURN, rule.action));
    program
}

/// The whole program.
pub fn assemble(default: u32, rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        insn(LOAD, ARCH_OFFSET),
        jump(EQUAL, ARCH, 1, 0),
        insn(RETURN, default),
        insn(LOAD, NUMBER_OFFSET),
        jump(AT_LEAST, 0x4000_0000, 0, 1),
        insn(RETURN, default),
    ];
    for rule in rules.iter().filter(|rule| !rule.conditions.is_empty()) {
        program.extend(conditional(rule));
    }
    program.push(insn(LOAD, NUMBER_OFFSET));
    let mut plain: Vec<(u32, u32)> = rules
        .iter()
        .filter(|rule| rule.conditions.is_empty())
        .map(|rule| (rule.number, rule.action))
        .collect();
    plain.sort_by_key(|&(number, _)| number);
    plain.dedup_by_key(|(number, _)| *number);
    let mut ranges: Vec<(u32, u32, u32)> = Vec::new();
    for (number, action) in plain {
        match ranges.last_mut() {
            Some((_, last, same)) if *last + 1 == number && *same == action => *last = number,
            _ => ranges.push((number, number, action)),
        }
    }
    for (first, last, action) in ranges {
        if first == last {
            program.push(jump(EQUAL, first, 0, 1));
        } else {
            program.push(jump(AT_LEAST, first, 0, 2));
            program.push(jump(GREATER, last, 1, 0));
        }
        program.push(insn(RETURN, action));
    }
    program.push(insn(RETURN, default));
    program
}

/// Runs a program as the kernel would; for tests.
#[cfg(test)]
pub fn run(program: &[Instruction], number: u32, args: [u64; 6]) -> u32 {
    let word = |offset: u32| match offset {
        NUMBER_OFFSET => number,
        ARCH_OFFSET => ARCH,
        other => {
            let argument = args[((other - ARGS_OFFSET) / 8) as usize];
            if (other - ARGS_OFFSET).is_multiple_of(8) {
                argument as u32
            } else {
                (argument >> 32) as u32
            }
        }
    };
    let (mut at, mut a) = (0, 0_u32);
    loop {
        let i = program[at];
        at += 1;
        let taken = match i.code {
            LOAD => {
                a = word(i.operand);
                continue;
            }
            AND => {
                a &= i.operand;
                continue;
            }
            RETURN => return i.operand,
            EQUAL => a == i.operand,
            GREATER => a > i.operand,
            AT_LEAST => a >= i.operand,
            other => panic!("instruction {other:#x}"),
        };
        at += usize::from(if taken { i.jump_true } else { i.jump_false });
    }
}
