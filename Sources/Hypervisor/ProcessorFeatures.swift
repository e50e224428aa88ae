/// The names of what CPUID shows, as /proc/cpuinfo has them. Intel SDM vol. 2 CPUID, AMD APM vol. 3 appendix E,
/// Linux Documentation/virt/kvm/x86/cpuid.rst.
package enum ProcessorFeatures {
    private struct Word {
        var leaf: UInt32
        var subleaf: UInt32
        var register: CPUIDLeaf.Register
        /// From bit 0 on; "." is none that a program depends on, "-" one without a name.
        var names: [Substring]
        init(_ leaf: UInt32, _ subleaf: UInt32, _ register: CPUIDLeaf.Register, _ names: String) {
            self.leaf = leaf
            self.subleaf = subleaf
            self.register = register
            self.names = names.split(separator: " ")
        }
        func name(_ bit: Int) -> String? {
            let name = bit < names.count ? names[bit] : "-"
            if name == "." { return nil }
            return name == "-" ? "CPUID \(String(leaf, radix: 16)).\(subleaf) \(register) bit \(bit)" : String(name)
        }
    }
    private static let words = [
        Word(
            1, 0, .ecx,
            "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4.1 sse4.2 x2apic movbe popcnt tsc_deadline_timer aes xsave . avx f16c rdrand ."
        ),
        Word(1, 0, .edx, "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - ds acpi mmx fxsr sse sse2 ss . tm - pbe"),
        Word(
            7, 0, .ebx,
            "fsgsbase tsc_adjust sgx bmi1 hle avx2 . smep bmi2 erms invpcid rtm cmt . mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha avx512bw avx512vl"
        ),
        Word(
            7, 0, .ecx,
            "prefetchwt1 avx512vbmi umip pku . waitpkg avx512_vbmi2 cet_ss gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57 . . . . . rdpid kl bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks"
        ),
        Word(
            7, 0, .edx,
            "- sgx_keys avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear rtm_always_abort - rtm_force_abort serialize hybrid tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl stibp flush_l1d arch_capabilities core_capabilities ssbd"
        ),
        Word(7, 1, .eax, ""), Word(7, 2, .edx, ""),
        Word(0xD, 1, .eax, "xsaveopt xsavec xgetbv1 xsaves xfd"),
        Word(
            0x8000_0001, 0, .ecx,
            "lahf_lm . svm extapic cr8_legacy lzcnt sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx"
        ),
        Word(
            0x8000_0001, 0, .edx,
            ". . . . . . . . . . - syscall . . . . . . - . nx - mmxext . . fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow"),
        Word(
            0x8000_0008, 0, .ebx,
            "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - ibpb - ibrs amd_stibp ibrs_always stibp_always ibrs_preferred ibrs_same_mode . - - amd_ppin amd_ssbd virt_ssbd amd_ssb_no cppc psfd btc_no"
        ),
        Word(0x8000_0021, 0, .eax, ""),
        Word(
            0x4000_0001, 0, .eax,
            "kvm_clock kvm_nopiodelay kvm_mmu kvm_clock2 kvm_asyncpf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt - kvm_pv_tlb_flush kvm_asyncpf_vmexit kvm_pv_send_ipi kvm_poll_control kvm_pv_sched_yield kvm_asyncpf_int kvm_msi_ext_dest_id kvm_hc_map_gpa_range kvm_migration_control - - - - - - ."
        ),
    ]

    /// Of what such a processor shows.
    package static func names(in leaves: [CPUIDLeaf]) -> Set<String> {
        var names: Set<String> = []
        for word in words {
            guard let leaf = leaves.first(where: { $0.leaf == word.leaf && $0.subleaf == word.subleaf }) else { continue }
            for bit in 0..<32 where leaf[word.register] >> UInt32(bit) & 1 != 0 {
                if let name = word.name(bit) { names.insert(name) }
            }
        }
        return names
    }

    /// What is left of an answer when of the features only `kept` are shown.
    package static func limit(_ leaf: CPUIDLeaf, to kept: Set<String>) -> CPUIDLeaf {
        var leaf = leaf
        for word in words where word.leaf == leaf.leaf && word.subleaf == leaf.subleaf {
            for bit in 0..<32 where leaf[word.register] >> UInt32(bit) & 1 != 0 {
                if let name = word.name(bit), !kept.contains(name) { leaf[word.register] &= ~(1 << UInt32(bit)) }
            }
        }
        return leaf
    }

    /// What only says how a processor's speculation is held back: one that does not speculate for the guest has nothing to do
    /// when it is asked to.
    package static let speculationControls: Set<String> = [
        "md_clear", "spec_ctrl", "stibp", "flush_l1d", "arch_capabilities", "ssbd", "ibpb", "ibrs", "amd_stibp", "ibrs_always", "stibp_always",
        "ibrs_preferred", "ibrs_same_mode", "amd_ssbd", "virt_ssbd", "amd_ssb_no", "psfd", "btc_no",
    ]

    /// What only says what is fast: such instructions are there anyway.
    private static let hints: Set<String> = ["erms", "fsrm", "kvm_nopiodelay", "ss"]

    /// Why a machine that was shown `leaves` cannot go on where there is `offered`; nil when it can.
    package static func objection(to leaves: [CPUIDLeaf], offered: Set<String>, by engine: String) -> String? {
        let missing = names(in: leaves).subtracting(offered).subtracting(hints)
        guard !missing.isEmpty else { return nil }
        return """
            The saved machine's processor has what \(engine) lacks here: \(missing.sorted().joined(separator: ", ")). A machine that is to move is made for \
            a processor level (--cpu x86-64-v2)
            """
    }
}
