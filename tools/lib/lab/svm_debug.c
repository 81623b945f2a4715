// What QEMU's emulation of SVM leaves out and KVM needs for a debugger, put right from within the lab. A kernel module for
// the lab's kernel, loaded by the tests that want breakpoints (docs/lab.md).
//
// - A hypervisor that intercepts exception 3 gets it from INT3 on every processor. QEMU looks at the intercept of INT n
//   instead, so this sets that one, and calls the exit by its right name.
// - VMRUN loads a guest's DR7, and breakpoints come into force by that. QEMU notes DR7 and no more; what it acts upon are
//   writes of DR7 by instructions, so this writes it just before the guest is entered, and 0 just after. Interrupts are
//   off in between.
//
// While a debugger has breakpoints, an `int N` of the guest's own would be taken for an INT3: 64-bit kernels have none.
// Sources: AMD64 Architecture Programmer's Manual vol. 2, 15.12 and 15.5; Linux, arch/x86/kvm/svm/svm.c (svm_vcpu_run).

#include <linux/module.h>
#include <linux/kprobes.h>
#include <linux/kvm_host.h>
#include <asm/debugreg.h>
#include <asm/svm.h>

struct entered {
	struct vmcb *vmcb;
	bool breakpoints;
};

// KVM is about to enter the guest: its function's first argument is the vCPU, whose `struct vcpu_svm` begins with the
// vCPU and a pointer to the VMCB at hand.
static int enter(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	struct entered *entered = (void *)instance->data;
	struct kvm_vcpu *vcpu = (void *)regs->di;
	struct vmcb *vmcb = *(struct vmcb **)(vcpu + 1);
	unsigned long *intercepts = (void *)vmcb->control.intercepts;

	entered->vmcb = vmcb;
	entered->breakpoints = vcpu->guest_debug & KVM_GUESTDBG_USE_HW_BP;
	if (vcpu->guest_debug & KVM_GUESTDBG_USE_SW_BP)
		__set_bit(INTERCEPT_INTn, intercepts);
	else
		__clear_bit(INTERCEPT_INTn, intercepts);
	if (entered->breakpoints)
		set_debugreg(vmcb->save.dr7, 7);
	return 0;
}

static int leave(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	struct entered *entered = (void *)instance->data;

	if (entered->breakpoints)
		set_debugreg(0, 7);
	if (entered->vmcb->control.exit_code == SVM_EXIT_SWINT)
		entered->vmcb->control.exit_code = SVM_EXIT_EXCP_BASE + BP_VECTOR;
	return 0;
}

static struct kretprobe run = {
	.kp.symbol_name = "svm_vcpu_run",
	.entry_handler = enter,
	.handler = leave,
	.data_size = sizeof(struct entered),
};

static int __init begin(void)
{
	return register_kretprobe(&run);
}

static void __exit end(void)
{
	unregister_kretprobe(&run);
}

module_init(begin);
module_exit(end);
MODULE_DESCRIPTION("Breakpoints for guests of an SVM that QEMU emulates");
MODULE_LICENSE("GPL");
