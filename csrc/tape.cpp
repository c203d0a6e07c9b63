// A tape of operator calls: what a function of tensors called once, to be called again without it.
//
// Recorded by PyTorch's observer of operator calls (ATen/record_function.h): operators that another
// one calls are its own affair. A tensor that neither is an input nor came out of a call is a
// constant, and so is a view of constants; memory that a call writes to is written to again.
//
// Tested by: tests/unit/ops/test_tape.py.
#ifndef NDEBUG
#define NDEBUG  // as PyTorch's releases are built: RecordFunction has other members without it
#endif
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/equal.h>
#include <ATen/record_function.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace megalite {
namespace {

using at::IValue;
using at::Tensor;

constexpr int64_t kConstant = -1;
constexpr int64_t kFewElements = 4096;  // of constants whose values may be compared

/// An argument, or an element of a list that is one: the value of a slot, a constant, or a list.
struct Argument {
  int64_t slot = kConstant;
  bool is_last = false;  // use of the slot
  IValue constant;       // of a list: one like it
  std::vector<Argument> elements;
};

struct Call {
  c10::OperatorHandle op;
  std::vector<Argument> arguments;
  std::vector<std::vector<int64_t>> results;  // slots of each result, of a list's elements
};

bool is_tensors(const IValue& x) {
  if (!x.isList()) return false;
  for (const IValue& element : x.toListRef())
    if (!element.isTensor()) return false;
  return !x.toListRef().empty();
}

bool has_tensors(const IValue& x) {
  if (!x.isList()) return x.isTensor() && x.toTensor().defined();
  for (const IValue& element : x.toListRef())
    if (has_tensors(element)) return true;
  return false;
}

bool is_same_memory(const Tensor& a, const Tensor& b) {
  return a.data_ptr() == b.data_ptr() && a.sizes() == b.sizes() && a.strides() == b.strides() &&
         a.dtype() == b.dtype();
}

bool is_same_constant(const IValue& a, const IValue& b) {
  if (a.isList() && b.isList() && has_tensors(a)) {
    const auto first = a.toListRef(), second = b.toListRef();
    if (first.size() != second.size()) return false;
    for (size_t i = 0; i < first.size(); ++i)
      if (!is_same_constant(first[i], second[i])) return false;
    return true;
  }
  if (!a.isTensor() || !b.isTensor()) return a.tagKind() == b.tagKind() && a == b;
  const Tensor &x = a.toTensor(), &y = b.toTensor();
  if (!x.defined() || !y.defined()) return x.defined() == y.defined();
  if (x.is_same(y) || is_same_memory(x, y)) return true;
  return x.is_cpu() && y.is_cpu() && x.dtype() == y.dtype() && x.sizes() == y.sizes() &&
         x.numel() <= kFewElements && at::equal(x, y);
}

bool is_same(const Argument& a, const Argument& b) {
  if (a.slot != b.slot || a.elements.size() != b.elements.size()) return false;
  for (size_t i = 0; i < a.elements.size(); ++i)
    if (!is_same(a.elements[i], b.elements[i])) return false;
  return a.slot != kConstant || !a.elements.empty() || is_same_constant(a.constant, b.constant);
}

/// The modes of this thread that choose an operator's kernel, such as autocast; without
/// autograd's and the tracer's, which functions that make tensors turn off.
struct Modes {
  c10::DispatchKeySet included, excluded;

  static Modes here() {
    const auto keys = c10::impl::tls_local_dispatch_key_set();
    const auto of_no_account =
        c10::autograd_dispatch_keyset_with_ADInplaceOrView.add(c10::DispatchKey::Tracer);
    return {keys.included_ - of_no_account, keys.excluded_ - of_no_account};
  }
  /// Whether Python may not see the call: so PyTorch makes tensors of numbers that Python gives,
  /// as in torch.tensor. It writes to their memory without an operator: they are constants.
  bool is_hidden() const { return excluded.has(c10::DispatchKey::Python); }
  bool operator==(const Modes& other) const {
    return included == other.included && excluded == other.excluded;
  }
};

/// A tensor that has a slot. Its addresses stay its own, so that no later one is taken for it; its
/// elements are freed as soon as whoever is recorded lets it go.
struct Seen {
  c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl> tensor;
  std::optional<c10::weak_intrusive_ptr<c10::StorageImpl>> storage;
  int64_t offset = 0;
  std::vector<int64_t> sizes, strides;
  caffe2::TypeMeta dtype;

  explicit Seen(const Tensor& x) : tensor(x.getIntrusivePtr()), dtype(x.dtype()) {
    if (!x.has_storage()) return;
    storage.emplace(x.storage().getWeakStorageImpl());
    offset = x.storage_offset(), sizes = x.sizes().vec(), strides = x.strides().vec();
  }
  /// Whether x, of the same storage, has the same elements.
  bool is_like(const Tensor& x) const {
    return x.storage_offset() == offset && x.sizes() == sizes && x.strides() == strides &&
           x.dtype() == dtype;
  }
};

bool has_slot(const Argument& argument) {
  if (argument.slot != kConstant) return true;
  for (const Argument& element : argument.elements)
    if (has_slot(element)) return true;
  return false;
}

class Tape : public torch::CustomClassHolder {
 public:
  ~Tape() override { stop(); }

  /// Record what this thread calls from here on.
  void begin(const std::vector<Tensor>& inputs) {
    TORCH_CHECK(c10::InferenceMode::is_enabled(), "tape: must be recorded in inference mode");
    TORCH_CHECK(!recording_, "tape: another one is being recorded in this thread");
    for (const Tensor& input : inputs) give_slot(input);
    num_inputs_ = inputs.size();
    modes_ = Modes::here();
    recording_ = this;
    handle_ = at::addThreadLocalCallback(at::RecordFunctionCallback(on_start, on_end)
                                             .needsInputs(true)
                                             .needsOutputs(true)
                                             .scopes({at::RecordScope::FUNCTION}));
  }

  /// End the recording; gives why it can't be run, "" where it can.
  std::string end(const std::vector<Tensor>& outputs) {
    stop();
    for (const Tensor& output : outputs) outputs_.push_back(argument_of(output));
    slots_.clear(), of_storage_.clear(), seen_.clear(), inputs_.clear(), arguments_.clear();
    mark_last_uses();
    if (!why_not_.empty()) calls_.clear();
    return why_not_;
  }

  /// Whether another recording has the same calls, with the same constants.
  bool equals(const c10::intrusive_ptr<Tape>& other) const {
    const c10::impl::ExcludeDispatchKeyGuard alone(c10::python_ks);  // Python sees no comparison
    if (!why_not_.empty() || !other->why_not_.empty() || calls_.size() != other->calls_.size() ||
        num_slots_ != other->num_slots_)
      return false;
    for (size_t i = 0; i < calls_.size(); ++i) {
      const Call &a = calls_[i], &b = other->calls_[i];
      if (!(a.op == b.op) || a.results != b.results || a.arguments.size() != b.arguments.size())
        return false;
      for (size_t j = 0; j < a.arguments.size(); ++j)
        if (!is_same(a.arguments[j], b.arguments[j])) return false;
    }
    return true;
  }

  std::vector<Tensor> run(const std::vector<Tensor>& inputs) const {
    TORCH_CHECK(why_not_.empty() && !recording_, "tape: can't be run: ", why_not_);
    TORCH_CHECK(c10::InferenceMode::is_enabled() && Modes::here() == modes_,
                "tape: must be run in the modes (inference, autocast) that it was recorded in");
    TORCH_CHECK(inputs.size() == num_inputs_, "tape: must get ", num_inputs_, " tensors, came ",
                inputs.size());
    std::vector<IValue> slots(num_slots_);
    for (size_t i = 0; i < inputs.size(); ++i) slots[i] = inputs[i];
    torch::jit::Stack stack;
    for (const Call& call : calls_) {
      stack.clear();
      for (const Argument& argument : call.arguments) stack.push_back(value_of(argument, slots));
      call.op.callBoxed(stack);
      for (size_t i = 0; i < call.results.size(); ++i) keep(call.results[i], stack[i], slots);
    }
    std::vector<Tensor> outputs;
    for (const Argument& output : outputs_) outputs.push_back(value_of(output, slots).toTensor());
    return outputs;
  }

  int64_t size() const { return static_cast<int64_t>(calls_.size()); }

 private:
  static std::unique_ptr<at::ObserverContext> on_start(const at::RecordFunction& function) {
    if (recording_ && recording_->depth_++ == 0) recording_->start(function);
    return nullptr;
  }

  static void on_end(const at::RecordFunction& function, at::ObserverContext*) {
    if (recording_ && --recording_->depth_ == 0) recording_->finish(function.outputs());
  }

  void stop() {
    if (recording_ != this) return;
    at::removeCallback(handle_);
    recording_ = nullptr;
  }

  void start(const at::RecordFunction& function) {
    const auto name = function.operator_name();
    op_ = name ? c10::Dispatcher::singleton().findSchema(*name) : std::nullopt;
    const Modes modes = Modes::here();
    if (modes.is_hidden() && !modes_.is_hidden()) {
      op_ = std::nullopt;
    } else if (!op_) {
      refuse(function.name(), "is no operator");
    } else if (!(modes == modes_)) {
      refuse(function.name(), "is called in a mode of its own");
    }
    inputs_.assign(function.inputs().begin(), function.inputs().end());
    arguments_.clear();
    for (const IValue& input : inputs_) arguments_.push_back(argument_of(input));
  }

  void finish(const std::vector<IValue>& outputs) {
    if (op_ && why_not_.empty()) take_over(outputs);
    inputs_.clear(), arguments_.clear();  // what nobody else holds any more is freed
  }

  /// Record the call unless it only looks at constants.
  void take_over(const std::vector<IValue>& outputs) {
    bool reads_tensors = false, reads_slots = false;
    for (size_t i = 0; i < inputs_.size(); ++i) {
      reads_tensors = reads_tensors || has_tensors(inputs_[i]);
      reads_slots = reads_slots || has_slot(arguments_[i]);
    }
    for (const IValue& output : outputs)
      if (!output.isTensor() && !is_tensors(output)) {
        // what is made of numbers alone is the same at each call; a number of a tensor may not be
        if (reads_tensors) refuse(c10::toString(op_->operator_name()), "gives no tensor");
        return;
      }
    const bool is_nothing = outputs.size() == 1 && argument_that_is(outputs[0]);
    const bool is_constant = !reads_slots && reads_tensors && is_view(outputs);
    if (!op_->schema().is_mutable() && (is_nothing || is_constant)) return;
    Call call{*op_, arguments_, {}};
    for (const IValue& output : outputs) {
      std::vector<int64_t> slots;
      if (output.isTensor()) {
        slots.push_back(slot_of_result(output.toTensor()));
      } else {
        for (const IValue& element : output.toListRef())
          slots.push_back(slot_of_result(element.toTensor()));
      }
      call.results.push_back(std::move(slots));
    }
    calls_.push_back(std::move(call));
  }

  void refuse(const std::string& name, const char* why) {
    if (why_not_.empty()) why_not_ = name + " " + why;
  }

  /// Which argument a tensor is, if it is one.
  std::optional<size_t> argument_that_is(const IValue& x) const {
    for (size_t i = 0; i < inputs_.size(); ++i)
      if (x.isTensor() && inputs_[i].isTensor() && inputs_[i].toTensor().is_same(x.toTensor()))
        return i;
    return std::nullopt;
  }

  /// The slot of what a call gave; an argument that it gives back stays what it was.
  int64_t slot_of_result(const Tensor& x) {
    const auto same = argument_that_is(x);
    return same ? arguments_[*same].slot : give_slot(x);
  }

  /// Whether each result is a part of an argument's memory.
  bool is_view(const std::vector<IValue>& outputs) const {
    for (const IValue& output : outputs) {
      bool found = false;
      for (const IValue& input : inputs_)
        found = found || (input.isTensor() && input.toTensor().defined() && output.isTensor() &&
                          output.toTensor().is_alias_of(input.toTensor()));
      if (!found) return false;
    }
    return !outputs.empty();
  }

  int64_t give_slot(const Tensor& x) {
    if (!x.defined()) return kConstant;
    const auto [found, is_first] = slots_.try_emplace(x.unsafeGetTensorImpl(), num_slots_);
    if (is_first) {
      seen_.emplace_back(x), ++num_slots_;
      if (x.has_storage()) of_storage_[x.storage().unsafeGetStorageImpl()].push_back(found->second);
    }
    return found->second;
  }

  /// The slot of a tensor; also where it is another one of the same memory, as what functions that
  /// make tensors give to Python.
  int64_t slot_of(const Tensor& x) {
    if (const auto found = slots_.find(x.unsafeGetTensorImpl()); found != slots_.end())
      return found->second;
    if (!x.has_storage()) return kConstant;
    const auto same = of_storage_.find(x.storage().unsafeGetStorageImpl());
    if (same == of_storage_.end()) return kConstant;
    for (const int64_t slot : same->second)
      if (seen_[slot].is_like(x)) return slot;
    refuse("a view", "came of no operator");
    return kConstant;
  }

  Argument argument_of(const IValue& x) {
    Argument argument;
    argument.constant = x;
    if (x.isTensor() && x.toTensor().defined()) {
      argument.slot = slot_of(x.toTensor());
      if (argument.slot != kConstant) argument.constant = IValue();
    } else if (has_tensors(x)) {
      for (const IValue& element : x.toListRef()) argument.elements.push_back(argument_of(element));
      if (!has_slot(argument)) argument.elements.clear();
    }
    return argument;
  }

  void mark_last_uses() {
    std::vector<bool> is_used(num_slots_, false);
    const auto mark = [&](auto& self, Argument& argument, bool may_be_last) -> void {
      for (auto element = argument.elements.rbegin(); element != argument.elements.rend();
           ++element)
        self(self, *element, may_be_last);
      if (argument.slot == kConstant) return;
      argument.is_last = may_be_last && !is_used[argument.slot];
      is_used[argument.slot] = true;
    };
    for (Argument& output : outputs_) mark(mark, output, false);
    for (auto call = calls_.rbegin(); call != calls_.rend(); ++call) {
      for (auto& results : call->results)
        for (int64_t& slot : results)
          if (slot != kConstant && !is_used[slot]) slot = kConstant;  // nobody asks for it
      for (auto argument = call->arguments.rbegin(); argument != call->arguments.rend(); ++argument)
        mark(mark, *argument, true);
    }
  }

  static IValue value_of(const Argument& argument, std::vector<IValue>& slots) {
    if (argument.slot != kConstant)
      return argument.is_last ? std::move(slots[argument.slot]) : slots[argument.slot];
    if (argument.elements.empty()) return argument.constant;
    c10::impl::GenericList list(argument.constant.toList().elementType());
    for (const Argument& element : argument.elements) list.push_back(value_of(element, slots));
    return list;
  }

  static void keep(const std::vector<int64_t>& results, IValue& value, std::vector<IValue>& slots) {
    if (value.isTensor()) {
      if (results[0] != kConstant) slots[results[0]] = std::move(value);
      return;
    }
    const auto elements = value.toListRef();
    for (size_t i = 0; i < results.size(); ++i)
      if (results[i] != kConstant) slots[results[i]] = elements[i];
  }

  static thread_local Tape* recording_;

  // while it is recorded
  at::CallbackHandle handle_ = 0;
  int64_t depth_ = 0;
  std::unordered_map<const c10::TensorImpl*, int64_t> slots_;
  std::unordered_map<const c10::StorageImpl*, std::vector<int64_t>> of_storage_;
  std::vector<Seen> seen_;  // by slot
  std::optional<c10::OperatorHandle> op_;
  std::vector<IValue> inputs_;
  std::vector<Argument> arguments_;

  // the recording
  Modes modes_;
  std::string why_not_;
  size_t num_inputs_ = 0;
  int64_t num_slots_ = 0;
  std::vector<Call> calls_;
  std::vector<Argument> outputs_;
};

thread_local Tape* Tape::recording_ = nullptr;

}  // namespace

TORCH_LIBRARY_FRAGMENT(megalite, m) {
  m.class_<Tape>("Tape")
      .def(torch::init<>())
      .def("begin", &Tape::begin)
      .def("end", &Tape::end)
      .def("equals", &Tape::equals)
      .def("run", &Tape::run)
      .def("size", &Tape::size);
}

}  // namespace megalite
