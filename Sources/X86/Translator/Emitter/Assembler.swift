import CX86

/// The r/m side of a host instruction.
enum HostOperand {
    case register(UInt8)
    /// [base + index * 2^scale + displacement]; no index: 0xFF. The stack pointer cannot be an index.
    case memory(base: UInt8, index: UInt8 = 0xFF, scale: UInt8 = 0, displacement: Int32 = 0)
    /// An address near the code, in an instruction that ends with it.
    case near(UInt)
}

/// Writes x86-64 machine code through one mapping for execution through another. Intel SDM vol. 2 chapter 2.
struct Assembler {
    private(set) var cursor: UnsafeMutablePointer<UInt8>
    /// What to add to a writable address for the executable one.
    let toExecutable: Int
    /// Of places that name something else; nil while nobody wants to know.
    private let fixups: UnsafeMutablePointer<FixupLog>?

    init(at cursor: UnsafeMutablePointer<UInt8>, toExecutable: Int, fixups: UnsafeMutablePointer<FixupLog>? = nil) {
        self.cursor = cursor
        self.toExecutable = toExecutable
        self.fixups = fixups
    }

    /// The address at which what comes next will run.
    var here: Int { Int(bitPattern: cursor) + toExecutable }

    mutating func byte(_ value: UInt8) {
        cursor.pointee = value
        cursor += 1
    }
    mutating func bytes(_ values: UInt8...) { for value in values { byte(value) } }
    mutating func int32(_ value: Int32) {
        UnsafeMutableRawPointer(cursor).storeBytes(of: value, as: Int32.self)
        cursor += 4
    }
    mutating func int64(_ value: UInt64) {
        UnsafeMutableRawPointer(cursor).storeBytes(of: value, as: UInt64.self)
        cursor += 8
    }
    mutating func immediate(_ value: Int64, size: Int) {
        switch size {
        case 1: byte(UInt8(truncatingIfNeeded: value))
        case 2:
            byte(UInt8(truncatingIfNeeded: value))
            byte(UInt8(truncatingIfNeeded: value >> 8))
        case 4: int32(Int32(truncatingIfNeeded: value))
        default: int64(UInt64(bitPattern: value))
        }
    }

    /// One instruction with a ModRM byte. `map`: 0 one-byte opcodes, 1 0F, 2 0F 38, 3 0F 3A.
    mutating func op(
        _ opcode: UInt8, reg: UInt8, _ rm: HostOperand, wide: Bool = true, map: UInt8 = 0, operand16: Bool = false, rep: UInt8 = 0, lock: Bool = false,
        forceREX: Bool = false
    ) {
        if lock { byte(0xF0) }
        if operand16 { byte(0x66) }
        if rep != 0 { byte(rep) }
        var rex: UInt8 = (wide ? 8 : 0) | (reg > 7 ? 4 : 0)
        switch rm {
        case .register(let n): rex |= n > 7 ? 1 : 0
        case .near: break
        case .memory(let base, let index, _, _): rex |= (base > 7 ? 1 : 0) | (index != 0xFF && index > 7 ? 2 : 0)
        }
        if rex != 0 || forceREX { byte(0x40 | rex) }
        if map > 0 { byte(0x0F) }
        if map > 1 { byte(map == 2 ? 0x38 : 0x3A) }
        byte(opcode)
        modRM(reg & 7, rm)
    }
    /// The same with a VEX prefix of three bytes. `prefix`: 0, 1 (66), 2 (F3), 3 (F2).
    mutating func vex(_ opcode: UInt8, reg: UInt8, vvvv: UInt8, _ rm: HostOperand, map: UInt8, prefix: UInt8, wide: Bool, long: Bool) {
        var extensions: UInt8 = reg > 7 ? 4 : 0
        switch rm {
        case .register(let n): extensions |= n > 7 ? 1 : 0
        case .near: break
        case .memory(let base, let index, _, _): extensions |= (base > 7 ? 1 : 0) | (index != 0xFF && index > 7 ? 2 : 0)
        }
        bytes(0xC4, (~extensions & 7) << 5 | map, (wide ? 0x80 : 0) | (~vvvv & 15) << 3 | (long ? 4 : 0) | prefix, opcode)
        modRM(reg & 7, rm)
    }
    private mutating func modRM(_ reg: UInt8, _ rm: HostOperand) {
        switch rm {
        case .register(let n): byte(0xC0 | reg << 3 | n & 7)
        case .near(let address):
            byte(reg << 3 | 5)
            distance(to: Int(bitPattern: address))
        case .memory(let base, let index, let scale, let displacement):
            let needsSIB = index != 0xFF || base & 7 == 4
            let mod: UInt8 = displacement == 0 && base & 7 != 5 ? 0 : (Int32(Int8(truncatingIfNeeded: displacement)) == displacement ? 1 : 2)
            byte(mod << 6 | reg << 3 | (needsSIB ? 4 : base & 7))
            if needsSIB { byte(scale << 6 | (index == 0xFF ? 4 : index & 7) << 3 | base & 7) }
            if mod == 1 { byte(UInt8(truncatingIfNeeded: displacement)) } else if mod == 2 { int32(displacement) }
        }
    }

    // MARK: the instructions that glue is made of

    mutating func load(_ register: UInt8, _ memory: HostOperand) { op(0x8B, reg: register, memory) }
    mutating func store(_ register: UInt8, _ memory: HostOperand) { op(0x89, reg: register, memory) }
    mutating func load32(_ register: UInt8, _ memory: HostOperand) { op(0x8B, reg: register, memory, wide: false) }
    mutating func lea(_ register: UInt8, _ memory: HostOperand, wide: Bool = true) { op(0x8D, reg: register, memory, wide: wide) }
    mutating func move(_ target: UInt8, _ source: UInt8, wide: Bool = true) { op(0x89, reg: source, .register(target), wide: wide) }
    mutating func moveImmediate(_ register: UInt8, _ value: UInt64) {
        if value <= UInt64(UInt32.max) {
            move32(register, UInt32(truncatingIfNeeded: value))
        } else {
            byte(0x48 | (register > 7 ? 1 : 0))
            byte(0xB8 | register & 7)
            int64(value)
        }
    }
    /// 32 bits; the upper half becomes zero.
    private mutating func move32(_ register: UInt8, _ value: UInt32) {
        if register > 7 { byte(0x41) }
        byte(0xB8 | register & 7)
        int32(Int32(bitPattern: value))
    }
    /// An operation of the block, by `TranslationCache.offset(of:)`.
    mutating func moveOperation(_ register: UInt8, _ operation: UInt32) {
        move32(register, operation)
        fixups?.pointee.note(cursor - 4, .operation)
    }
    /// Goes on at an address that is the same in all caches, with an operation of the block.
    mutating func exit(_ register: UInt8, _ operation: UInt32, to address: Int) {
        move32(register, operation)
        fixups?.pointee.note(cursor - 4, .exit)
        byte(0xE9)
        int32(Int32(truncatingIfNeeded: address - (here + 4)))
    }
    /// What an operation does, or what is to be done instead, into r9.
    mutating func moveHandler(_ handler: Handler) {
        byte(0x49)
        byte(0xB9)
        int64(UInt64(unsafeBitCast(handler, to: UInt.self)))
    }
    /// From an exit's operation to where its jump names the distance.
    static let exitDistance = 5
    /// An edge's number, above where in the page the edge leads.
    mutating func moveEdge(_ register: UInt8, _ edge: Int, to offset: Int) {
        move32(register, UInt32(truncatingIfNeeded: edge << 12 | offset))
        fixups?.pointee.note(cursor - 4, .edge)
    }
    mutating func push(_ register: UInt8) {
        if register > 7 { byte(0x41) }
        byte(0x50 | register & 7)
    }
    mutating func pop(_ register: UInt8) {
        if register > 7 { byte(0x41) }
        byte(0x58 | register & 7)
    }
    /// A forward jump; `patch` sets its target.
    mutating func jump() -> UnsafeMutablePointer<UInt8> {
        byte(0xE9)
        int32(0)
        return cursor
    }
    /// The same over less than 128 bytes; `patchShort` sets its target.
    mutating func shortJump() -> UnsafeMutablePointer<UInt8> {
        bytes(0xEB, 0)
        return cursor
    }
    /// `condition`: the low four bits of Jcc.
    mutating func jump(if condition: UInt8) -> UnsafeMutablePointer<UInt8> {
        bytes(0x0F, 0x80 | condition)
        int32(0)
        return cursor
    }
    mutating func jump(to address: Int) {
        byte(0xE9)
        distance(to: address)
    }
    mutating func call(_ address: Int) {
        byte(0xE8)
        distance(to: address)
    }
    mutating func jump(if condition: UInt8, to address: Int) {
        bytes(0x0F, 0x80 | condition)
        distance(to: address)
    }
    /// What an instruction's last bytes but `trailing` name by how far it lies behind the instruction.
    private mutating func distance(to address: Int, trailing: Int = 0) {
        fixups?.pointee.note(cursor, .address(address))
        int32(Int32(truncatingIfNeeded: address &- (here + 4 + trailing)))
    }
    /// Where a jump may be written later.
    static let room: [UInt8] = [0x0F, 0x1F, 0x44, 0x00, 0x00]  // nop
    /// Makes the jump that ended at `end` come here.
    func patch(_ end: UnsafeMutablePointer<UInt8>) {
        // A block's two pieces lie further from each other than either is long.
        if abs(cursor - end) > TranslationCache.reserve { fixups?.pointee.note(end - 4, .address(here)) }
        UnsafeMutableRawPointer(end - 4).storeBytes(of: Int32(truncatingIfNeeded: cursor - end), as: Int32.self)
    }
    func patchShort(_ end: UnsafeMutablePointer<UInt8>) { (end - 1).pointee = UInt8(truncatingIfNeeded: cursor - end) }
    /// EFLAGS to the state. Changes EFLAGS not at all; r11 is lost.
    mutating func saveFlags() {
        move(Host.address, Host.rax)
        bytes(0x9F, 0x0F, 0x90, 0xC0)  // lahf; seto al
        op(0x89, reg: Host.rax, Host.cell(Int(X86_T1_FLAGS_OFFSET)), wide: false, operand16: true)
        move(Host.rax, Host.address)
    }
    /// "Equal" when nobody wants anything. Five bytes, as many as a jump takes: see TranslationCache.redirect.
    mutating func comparePending() {
        op(0x83, reg: 7, Host.cell(Int(X86_PENDING_OFFSET)), wide: false)
        byte(0)
    }
    /// An eighth of the distance of the jump cache's place for r11 in r9; EFLAGS are lost. See JumpHash.
    mutating func hashTarget() {
        bytes(0x45, 0x69, 0xCB)  // imul r9d, r11d, …
        int32(Int32(bitPattern: JumpHash.factor))
        bytes(0x41, 0xC1, 0xE9, UInt8(JumpHash.shift - 1))  // shr r9d, …
        bytes(0x41, 0x83, 0xE1, 0xFE)  // and r9d, -2
        op(0x33, reg: Host.scratch, Host.cell(Int(X86_JUMP_SALT_OFFSET)), wide: false)
    }
    /// The address of the TLB's entry for the linear address in r11 in `entry`; jumps if that does not have it, with 4096 less the
    /// operand's size in r9. Both are registers of the first eight. Returns the tag, too.
    mutating func findPage(entry: UInt8, scratch: UInt8, user: Bool, write: Bool) -> (tag: HostOperand, fails: UnsafeMutablePointer<UInt8>) {
        move(entry, Host.address, wide: false)
        bytes(0xC1, 0xE8 | entry, 0x0C)  // shr …, 12
        lea(entry, Host.cell(Int32(X86_TLB_TABLES) + (user ? Int32(X86_TLB_BYTES) : 0), index: entry, scale: 3))
        let tag = HostOperand.memory(base: entry, displacement: write ? Int32(X86_TLB_COLUMN) : 0)
        move(scratch, Host.address)
        op(0x33, reg: scratch, tag)
        op(0x39, reg: Host.scratch, .register(scratch))
        return (tag, jump(if: 7))
    }
    /// Jumps with "above" when the linear address in r11 is none of 32-bit code.
    mutating func compareWithNarrow(scratch: UInt8) -> UnsafeMutablePointer<UInt8> {
        move(scratch, Host.address, wide: false)
        op(0x39, reg: scratch, .register(Host.address))
        return jump(if: 5)
    }
    /// A counter of 16 bits in the code's buffer; the sign flag says when it has passed 0. EFLAGS are lost.
    mutating func decrement(_ counter: UInt) {
        byte(0x66)
        add(-1, to: counter)
    }
    /// One of 32 bits.
    mutating func increment(_ counter: UInt) { add(1, to: counter) }
    private mutating func add(_ value: Int8, to cell: UInt) {
        bytes(0x83, 0x05)  // add [rip + …], …
        distance(to: Int(bitPattern: cell), trailing: 1)
        byte(UInt8(bitPattern: value))
    }
    /// Through the cell at an executable address.
    mutating func jumpThrough(_ address: Int, isCall: Bool = false) {
        bytes(0xFF, isCall ? 0x15 : 0x25)
        distance(to: address)
    }
    mutating func leaRIP(_ register: UInt8, _ address: Int) {
        bytes(0x48 | (register > 7 ? 4 : 0), 0x8D, 0x05 | (register & 7) << 3)
        distance(to: address)
    }
}
